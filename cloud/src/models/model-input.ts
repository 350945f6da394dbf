/**
 * What goes into a network, declared once for training and serving.
 * A model judges how a zone differs from what it usually looks like: 4 * |pixel - reference| with the median of the
 * training crops as reference (chosen by measurement, `docs/decisions/0003`).
 */

import { distanceKernel } from './distance-kernel.ts'

/** Per `camera zone`: Uint8Array [height, width, channels], the median of the training crops. */
export type References = ReadonlyMap<string, Uint8Array>

export function referenceKey(cameraId: string, zone: string): string {
  return `${cameraId} ${zone}`
}

const contrast = 4

export interface Augmentation {
  readonly gain: number
  readonly bias: number
  readonly flip: boolean
}

const plain: Augmentation = { gain: 1, bias: 0, flip: false }
const perStep = contrast / 255

interface Kernel {
  readonly memory: WebAssembly.Memory
  distance(crop: number, reference: number, end: number, out: number, factor: number): void
}
interface Opened {
  readonly distance: Kernel['distance']
  /** Bytes of an input that there is room for, a multiple of 16. */
  readonly room: number
  readonly crop: Uint8Array
  readonly reference: Uint8Array
  readonly out: Float32Array
}
let kernel: Kernel | undefined
let opened: Opened | undefined

/** One instance per thread, with room for the largest input it has seen. */
function openKernel(bytes: number): Opened {
  if (opened && opened.room >= bytes) return opened
  kernel ??= new WebAssembly.Instance(new WebAssembly.Module(Buffer.from(distanceKernel, 'base64')), {}).exports as unknown as Kernel
  const room = (bytes + 15) & ~15
  const missing = 6 * room - kernel.memory.buffer.byteLength
  if (missing > 0) kernel.memory.grow(Math.ceil(missing / 65_536))
  const { buffer } = kernel.memory
  opened = { distance: kernel.distance, room, crop: new Uint8Array(buffer, 0, room), reference: new Uint8Array(buffer, room, room), out: new Float32Array(buffer, 2 * room, room) }
  return opened
}

/** Without augmentation, sixteen values at a time: 5 µs for 64x64x3, where a loop in JavaScript takes 27. */
function writeDistance(out: Float32Array, offset: number, crop: Uint8Array, reference: Uint8Array): void {
  const { distance, room, crop: one, reference: other, out: distances } = openKernel(crop.length)
  one.set(crop)
  other.set(reference.length > room ? reference.subarray(0, crop.length) : reference)
  distance(0, room, crop.length, 2 * room, perStep)
  out.set(distances.length === crop.length ? distances : distances.subarray(0, crop.length), offset)
}

/** What a zone without a reference is compared with. */
let black: Uint8Array = new Uint8Array(0)

/** Writes one example, Float32 [height, width, channels], at `offset` of `out`. A zone without a reference is compared with black. */
export function writeInput(
  out: Float32Array,
  offset: number,
  crop: Uint8Array,
  reference: Uint8Array | undefined,
  { width, channels }: { readonly width: number; readonly channels: number },
  augmentation: Augmentation = plain,
): void {
  if (augmentation === plain) {
    if (black.length < crop.length) black = new Uint8Array(crop.length)
    writeDistance(out, offset, crop, reference ?? black)
    return
  }
  const { gain, bias, flip } = augmentation
  const line = width * channels
  for (let at = 0; at < crop.length; at += 1) {
    const value = ((crop[at] as number) / 255 - 0.5) * gain + 0.5 + bias
    const difference = contrast * Math.abs(value - (reference ? (reference[at] as number) / 255 : 0))
    if (!flip) out[offset + at] = difference
    else {
      const inLine = at % line
      const channel = inLine % channels
      out[offset + at - inLine + (line - channels - (inLine - channel)) + channel] = difference
    }
  }
}
