/** Bytes → pixels, for validation, features, training and serving alike. JPEG goes the quick way, everything else through sharp. */

import { Fault, toError } from '@frameloop/kit/fault'
import { readJpegHeader } from '@frameloop/kit/jpeg-header'
import sharp from 'sharp'
import { jpegDecoder, type Scale } from './jpeg-decoder.ts'

/** Uint8Array [height, width, 3], RGB. `scale` says by how much it was shrunk while decoding. */
export interface Picture {
  readonly width: number
  readonly height: number
  readonly rgb: Uint8Array
  readonly scale: Scale
  /** Size before scaling. */
  readonly fullWidth: number
  readonly fullHeight: number
}

/** 50 million pixels: beyond any camera in use, and 150 MB when decoded. */
export const pixelLimit = 50_000_000

// only the formats that cameras and phones send; the rest of libvips' loaders stay shut
sharp.block({ operation: ['VipsForeignLoad'] })
sharp.unblock({ operation: ['VipsForeignLoadJpegBuffer', 'VipsForeignLoadPngBuffer', 'VipsForeignLoadWebpBuffer'] })
sharp.cache(false)
sharp.concurrency(1)

export type PictureFormat = 'jpeg' | 'png' | 'webp'

/** The true format by content, or undefined. */
export function sniffPicture(bytes: Uint8Array): PictureFormat | undefined {
  const starts = (...magic: readonly number[]): boolean => magic.every((byte, at) => bytes[at] === byte)
  if (starts(0xff, 0xd8, 0xff)) return 'jpeg'
  if (starts(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a)) return 'png'
  if (starts(0x52, 0x49, 0x46, 0x46) && bytes[8] === 0x57 && bytes[9] === 0x45 && bytes[10] === 0x42 && bytes[11] === 0x50) return 'webp'
  return undefined
}

/** The strongest shrinking that leaves at least twice the pixels asked for, so that averaging hides the decoder's kernel. */
export function chooseScale(width: number, height: number, wantWidth: number, wantHeight: number): Scale {
  const fits = ([8, 4, 2] as const).find((scale) => Math.ceil(width / scale) >= 2 * wantWidth && Math.ceil(height / scale) >= 2 * wantHeight)
  return fits ?? 1
}

export interface DecodeOptions {
  /** The size that the whole picture will be used at, at least; absent: full size. */
  readonly atLeast?: { readonly width: number; readonly height: number }
}

/** Throws `PICTURE_UNREADABLE` (damaged, cut off, no picture) and `PICTURE_TOO_LARGE` (by its header, before decoding). */
export async function decodePicture(bytes: Uint8Array, options: DecodeOptions = {}): Promise<Picture> {
  const format = sniffPicture(bytes)
  if (!format) throw new Fault('PICTURE_UNREADABLE', 'The bytes are no JPEG, PNG or WebP picture')
  const header = format === 'jpeg' ? readJpegHeader(bytes) : undefined
  if (format === 'jpeg' && !header) throw new Fault('PICTURE_UNREADABLE', 'The JPEG has no readable header')
  if (header) {
    if (header.width * header.height > pixelLimit)
      throw new Fault('PICTURE_TOO_LARGE', `The picture says it is ${header.width}x${header.height}, more than ${pixelLimit / 1e6} million pixels`)
    if (header.width === 0 || header.height === 0) throw new Fault('PICTURE_UNREADABLE', 'The JPEG says it has no size')
    const plain = header.bitsPerSample === 8 && header.process <= 2 && header.orientation === 1 && (header.components === 1 || header.components === 3)
    if (plain) {
      const scale = options.atLeast ? chooseScale(header.width, header.height, options.atLeast.width, options.atLeast.height) : 1
      const rgb = jpegDecoder().decode(bytes, header, scale)
      return { width: Math.ceil(header.width / scale), height: Math.ceil(header.height / scale), rgb, scale, fullWidth: header.width, fullHeight: header.height }
    }
  }
  try {
    const { data, info } = await sharp(bytes, { limitInputPixels: pixelLimit, failOn: 'truncated', sequentialRead: true })
      .autoOrient()
      .flatten({ background: '#000' })
      .toColourspace('srgb')
      .raw()
      .toBuffer({ resolveWithObject: true })
    const rgb = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    return { width: info.width, height: info.height, rgb, scale: 1, fullWidth: info.width, fullHeight: info.height }
  } catch (thrown) {
    const { message } = toError(thrown)
    if (/pixel limit/.test(message)) throw new Fault('PICTURE_TOO_LARGE', `The picture has more than ${pixelLimit / 1e6} million pixels`, {}, thrown)
    throw new Fault('PICTURE_UNREADABLE', `The picture cannot be decoded: ${message.split('\n')[0]}`, {}, thrown)
  }
}
