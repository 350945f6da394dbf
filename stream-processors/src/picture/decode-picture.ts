/** Bytes → pixels, for validation, features, training and serving alike. JPEG goes the quick way, everything else through sharp. */

import { Fault, toError } from '@frameloop/kit/fault'
import sharp from 'sharp'
import { jpegDecoder, type Scale } from './jpeg-decoder.ts'
import { type PictureHeader, readPictureHeader, sniffPicture } from './picture-header.ts'
import { isOnItsSide, upright } from './upright.ts'

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

/** The strongest shrinking that leaves at least the size asked for: 39 dB from a full decode at 1080p to 224x224, at a third of its time (`npm run bench -- decode`). */
export function chooseScale(width: number, height: number, wantWidth: number, wantHeight: number): Scale {
  const fits = ([8, 4, 2] as const).find((scale) => Math.ceil(width / scale) >= wantWidth && Math.ceil(height / scale) >= wantHeight)
  return fits ?? 1
}

export interface DecodeOptions {
  /** The size that the whole picture will be used at, at least; absent: full size. */
  readonly atLeast?: { readonly width: number; readonly height: number }
  /** Whether formats that are not scaled by their decoder are made smaller as well, so that the whole of a large picture is never held. */
  readonly always?: boolean
}

/** What may be decoded, by its header alone. Throws `PICTURE_UNREADABLE` (no picture, no header), `PICTURE_TOO_LARGE` and `PICTURE_ANIMATED`. */
export function admitPicture(bytes: Uint8Array): PictureHeader {
  const format = sniffPicture(bytes)
  if (!format) throw new Fault('PICTURE_UNREADABLE', 'The bytes are no JPEG, PNG or WebP picture')
  const header = readPictureHeader(bytes)
  if (!header) throw new Fault('PICTURE_UNREADABLE', `The ${names[format]} has no readable header`)
  const { width, height, frames } = header
  if (width === 0 || height === 0) throw new Fault('PICTURE_UNREADABLE', `The ${names[format]} says it has no size`)
  if (width * height > pixelLimit) throw new Fault('PICTURE_TOO_LARGE', `The picture says it is ${width}x${height}, more than ${pixelLimit / 1e6} million pixels`)
  if (frames > 1) throw new Fault('PICTURE_ANIMATED', `The ${names[format]} is an animation of ${frames} pictures`)
  return header
}

const names = { jpeg: 'JPEG', png: 'PNG', webp: 'WebP' } as const

/** Throws what `admitPicture` throws, before decoding, and `PICTURE_UNREADABLE` when the data are damaged or cut off. */
export async function decodePicture(bytes: Uint8Array, options: DecodeOptions = {}): Promise<Picture> {
  const { jpeg, width, height } = admitPicture(bytes)
  const isPlain = jpeg && jpeg.bitsPerSample === 8 && jpeg.process <= 2 && (jpeg.components === 1 || jpeg.components === 3)
  if (isPlain) {
    const turned = ({ width: across, height: down }: { readonly width: number; readonly height: number }) =>
      isOnItsSide(jpeg.orientation) ? { width: down, height: across } : { width: across, height: down }
    const wanted = options.atLeast && turned(options.atLeast)
    const scale = wanted ? chooseScale(width, height, wanted.width, wanted.height) : 1
    const stored = { width: Math.ceil(width / scale), height: Math.ceil(height / scale) }
    const rgb = upright(jpegDecoder().decode(bytes, jpeg, scale), stored.width, stored.height, jpeg.orientation)
    const full = turned({ width, height })
    return { ...turned(stored), rgb, scale, fullWidth: full.width, fullHeight: full.height }
  }
  try {
    // what libjpeg only warns of is damage, as it is on the quick way
    const picture = sharp(bytes, { limitInputPixels: pixelLimit, failOn: jpeg ? 'warning' : 'truncated', sequentialRead: true })
    const { width: fullWidth, height: fullHeight } = (await picture.metadata()).autoOrient
    const scale = options.atLeast && options.always ? chooseScale(fullWidth, fullHeight, options.atLeast.width, options.atLeast.height) : 1
    const turned = picture.autoOrient().flatten({ background: '#000' }).toColourspace('srgb')
    const sized = scale === 1 ? turned : turned.resize(Math.ceil(fullWidth / scale), Math.ceil(fullHeight / scale), { fit: 'fill', kernel: 'linear', fastShrinkOnLoad: false })
    const { data, info } = await sized.raw().toBuffer({ resolveWithObject: true })
    const rgb = new Uint8Array(data.buffer, data.byteOffset, data.byteLength)
    return { width: info.width, height: info.height, rgb, scale, fullWidth, fullHeight }
  } catch (thrown) {
    const { message } = toError(thrown)
    if (/pixel limit/.test(message)) throw new Fault('PICTURE_TOO_LARGE', `The picture has more than ${pixelLimit / 1e6} million pixels`, {}, thrown)
    throw new Fault('PICTURE_UNREADABLE', `The picture cannot be decoded: ${message.split('\n')[0]}`, {}, thrown)
  }
}

/** Pixels → PNG, without loss. */
export function encodePng({ rgb, width, height }: Pick<Picture, 'rgb' | 'width' | 'height'>): Promise<Buffer> {
  return sharp(rgb, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer()
}
