/**
 * libjpeg-turbo with the accurate integer IDCT, called directly: no wrapper scales while decoding, and scaled decoding is
 * what large pictures need. On Linux through its shared library, elsewhere as WebAssembly; both give the same bits
 * (measured at 1/1 to 1/8, and equal to sharp's at 1/1), so models do not notice where they run. `docs/decisions/0002`.
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { Fault } from '@frameloop/kit/fault'
import type { JpegHeader } from '@frameloop/kit/jpeg-header'
import koffi from 'koffi'

/** 1/1, 1/2, 1/4 or 1/8. */
export type Scale = 1 | 2 | 4 | 8

export interface JpegDecoder {
  readonly kind: 'native' | 'wasm'
  /** Uint8Array [ceil(height/scale), ceil(width/scale), 3], RGB. Throws `PICTURE_UNREADABLE` on any damage. */
  readonly decode: (bytes: Uint8Array, header: JpegHeader, scale: Scale) => Uint8Array
}

const require = createRequire(import.meta.url)
const unreadable = (why: string): Fault => new Fault('PICTURE_UNREADABLE', `The JPEG cannot be decoded: ${why}`)

/** Parameters of turbojpeg.h 3.x. */
const tj = { decompress: 1, stopOnWarning: 0, width: 5, height: 6, scanLimit: 13, rgb: 0 } as const
/** Progressive scans beyond this are an attack (libjpeg-turbo's own fuzzers use 500). */
const scanLimit = 500

function openNative(): JpegDecoder {
  const lib = koffi.load(join(dirname(require.resolve('@julusian/jpeg-turbo')), `prebuilds/jpeg-turbo-linux-${process.arch}/libturbojpeg.so.0`))
  koffi.struct('tjscalingfactor', { num: 'int', denom: 'int' })
  const init = lib.func('void* tj3Init(int)')
  const set = lib.func('int tj3Set(void*, int, int)')
  const get = lib.func('int tj3Get(void*, int)')
  const readHeader = lib.func('int tj3DecompressHeader(void*, const uint8_t*, size_t)')
  const setScale = lib.func('int tj3SetScalingFactor(void*, tjscalingfactor)')
  const decompress = lib.func('int tj3Decompress8(void*, const uint8_t*, size_t, uint8_t*, int, int)')
  const errorText = lib.func('const char* tj3GetErrorStr(void*)')
  const destroy = lib.func('void tj3Destroy(void*)')
  const open = (): unknown => {
    const handle: unknown = init(tj.decompress)
    set(handle, tj.scanLimit, scanLimit)
    set(handle, tj.stopOnWarning, 1)
    scaled = 1
    return handle
  }
  /** As the handle was last told. */
  let scaled: Scale
  let handle = open()
  /** A damaged picture leaves the instance in a state that refuses the next good one (measured with a bogus Huffman table): it is opened anew. */
  const refuse = (): Fault => {
    const fault = unreadable(String(errorText(handle)))
    destroy(handle)
    handle = open()
    return fault
  }
  return {
    kind: 'native',
    decode(bytes, { width, height }, scale) {
      if (readHeader(handle, bytes, bytes.length) !== 0) throw refuse()
      // what is written must be as large as the room for it, whatever was made of the header before
      if (get(handle, tj.width) !== width || get(handle, tj.height) !== height) throw unreadable('it says two sizes')
      if (scale !== scaled) setScale(handle, { num: 1, denom: scale })
      scaled = scale
      const out = new Uint8Array(Math.ceil(width / scale) * Math.ceil(height / scale) * 3)
      if (decompress(handle, bytes, bytes.length, out, 0, tj.rgb) !== 0) throw refuse()
      return out
    },
  }
}

interface TurboExports {
  readonly memory: WebAssembly.Memory
  malloc(bytes: number): number
  free(pointer: number): void
  tjInitDecompress(): number
  tjDecompressHeader3(handle: number, bytes: number, length: number, width: number, height: number, subsampling: number, colourspace: number): number
  tjDecompress2(handle: number, bytes: number, length: number, out: number, width: number, pitch: number, height: number, format: number, flags: number): number
}

function openWasm(): JpegDecoder {
  const module = new WebAssembly.Module(readFileSync(join(dirname(require.resolve('@cwasm/jpeg-turbo')), 'jpeg-turbo.wasm')))
  const refuse = (): never => {
    throw unreadable('it is damaged')
  }
  const open = () => {
    const instance = new WebAssembly.Instance(module, {
      env: { setjmp: () => 0, longjmp: refuse },
      wasi_snapshot_preview1: { environ_sizes_get: () => 0, environ_get: refuse, proc_exit: refuse, fd_close: refuse, fd_seek: refuse, fd_write: refuse },
    })
    const turbo = instance.exports as unknown as TurboExports
    return { turbo, handle: turbo.tjInitDecompress(), meta: turbo.malloc(16) }
  }
  let opened = open()
  return {
    kind: 'wasm',
    decode(bytes, { width, height }, scale) {
      const { turbo, handle, meta } = opened
      const wide = Math.ceil(width / scale)
      const size = wide * Math.ceil(height / scale) * 3
      const input = turbo.malloc(bytes.length)
      const output = turbo.malloc(size)
      try {
        new Uint8Array(turbo.memory.buffer, input, bytes.length).set(bytes)
        if (turbo.tjDecompressHeader3(handle, input, bytes.length, meta, meta + 4, meta + 8, meta + 12) !== 0) throw unreadable('its header is damaged')
        const [itsWidth, itsHeight] = new Int32Array(turbo.memory.buffer, meta, 2)
        if (itsWidth !== width || itsHeight !== height) throw unreadable('it says two sizes')
        if (turbo.tjDecompress2(handle, input, bytes.length, output, wide, 0, Math.ceil(height / scale), 0, 0) !== 0) throw unreadable('its data are damaged or cut off')
        return new Uint8Array(turbo.memory.buffer, output, size).slice()
      } catch (thrown) {
        // after a longjmp nothing inside the instance can be trusted
        opened = open()
        throw thrown
      } finally {
        if (opened.turbo === turbo) {
          turbo.free(input)
          turbo.free(output)
        }
      }
    },
  }
}

let decoder: JpegDecoder | undefined

/** One decoder per thread, opened at first use; `wasm` can be asked for, to compare. */
export function jpegDecoder(kind?: 'wasm'): JpegDecoder {
  if (kind === 'wasm') return openWasm()
  if (decoder) return decoder
  const hasLibrary = process.platform === 'linux' && (process.arch === 'x64' || process.arch === 'arm64')
  try {
    decoder = hasLibrary ? openNative() : openWasm()
  } catch {
    decoder = openWasm()
  }
  return decoder
}
