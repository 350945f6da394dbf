/**
 * What a picture says of itself before anything is decoded, by content and never by name: the guard against bombs.
 * JPEG: ITU-T T.81 B.2. PNG: W3C PNG 3 (IHDR, acTL). WebP: RFC 9649 (VP8, VP8L, VP8X, ANMF).
 */
import { type JpegHeader, readJpegHeader } from '@frameloop/kit/jpeg-header'

export type PictureFormat = 'jpeg' | 'png' | 'webp'

export interface PictureHeader {
  readonly format: PictureFormat
  readonly width: number
  readonly height: number
  /** More than one: an animation. */
  readonly frames: number
  readonly jpeg?: JpegHeader
}

/** The true format by content, or undefined. */
export function sniffPicture(bytes: Uint8Array): PictureFormat | undefined {
  const starts = (...magic: readonly number[]): boolean => magic.every((byte, at) => bytes[at] === byte)
  if (starts(0xff, 0xd8, 0xff)) return 'jpeg'
  if (starts(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a)) return 'png'
  if (starts(0x52, 0x49, 0x46, 0x46) && bytes[8] === 0x57 && bytes[9] === 0x45 && bytes[10] === 0x42 && bytes[11] === 0x50) return 'webp'
  return undefined
}

/** The header, or undefined where it is cut off or makes no sense. Reads at most the chunk heads, whatever the size. */
export function readPictureHeader(bytes: Uint8Array): PictureHeader | undefined {
  const format = sniffPicture(bytes)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  try {
    if (format === 'jpeg') {
      const jpeg = readJpegHeader(bytes)
      return jpeg ? { format, width: jpeg.width, height: jpeg.height, frames: 1, jpeg } : undefined
    }
    if (format === 'png') return pngHeader(view)
    if (format === 'webp') return webpHeader(view)
  } catch (thrown) {
    // reading past the end: it is cut off
    if (!(thrown instanceof RangeError)) throw thrown
  }
  return undefined
}

const fourCc = (text: string): number => Buffer.from(text, 'latin1').readUInt32BE()
const [ihdr, actl, idat, vp8, vp8l, vp8x, anmf] = ['IHDR', 'acTL', 'IDAT', 'VP8 ', 'VP8L', 'VP8X', 'ANMF'].map(fourCc)

function pngHeader(view: DataView): PictureHeader | undefined {
  if (view.getUint32(12) !== ihdr) return undefined
  const size = { width: view.getUint32(16), height: view.getUint32(20) }
  // an animation says so before its data
  for (let at = 8; at + 8 <= view.byteLength; ) {
    const kind = view.getUint32(at + 4)
    if (kind === actl) return { format: 'png', ...size, frames: view.getUint32(at + 8) }
    if (kind === idat) break
    at += 12 + view.getUint32(at)
  }
  return { format: 'png', ...size, frames: 1 }
}

function webpHeader(view: DataView): PictureHeader | undefined {
  const kind = view.getUint32(12)
  const u24 = (at: number): number => view.getUint16(at, true) | (view.getUint8(at + 2) << 16)
  if (kind === vp8) return { format: 'webp', width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff, frames: 1 }
  if (kind === vp8l) {
    const bits = view.getUint32(21, true)
    return { format: 'webp', width: (bits & 0x3fff) + 1, height: ((bits >>> 14) & 0x3fff) + 1, frames: 1 }
  }
  if (kind !== vp8x) return undefined
  const size = { width: u24(24) + 1, height: u24(27) + 1 }
  if ((view.getUint8(20) & 2) === 0) return { format: 'webp', ...size, frames: 1 }
  let frames = 0
  for (let at = 12; at + 8 <= view.byteLength; ) {
    if (view.getUint32(at) === anmf) frames += 1
    const length = view.getUint32(at + 4, true)
    at += 8 + length + (length & 1)
  }
  return { format: 'webp', ...size, frames }
}
