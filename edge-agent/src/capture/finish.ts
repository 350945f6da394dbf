/** What ffmpeg's filters do for streams, for pictures that come as they are: masks, size, the small gray picture of the motion gate. */
import sharp from 'sharp'
import type { CameraSettings } from '../config.ts'
import { motionHeight, motionWidth } from './motion.ts'
import type { Captured } from './source.ts'

// pictures are seldom and never the same one twice: threads and a cache of results would only hold memory
sharp.cache(false)
sharp.concurrency(1)

/** Upright, whatever its EXIF says, so that masks lie where people see them. Throws for what cannot be decoded: it is not let through unmasked. */
export async function finishPicture(picture: Captured, { masks = [], width, quality = 3 }: CameraSettings): Promise<Captured> {
  if (masks.length === 0 && width === undefined) return picture
  const { autoOrient: size } = await sharp(picture.bytes).metadata()
  const isSmaller = width !== undefined && size.width > width
  if (masks.length === 0 && !isSmaller) return picture
  const upright = sharp(picture.bytes).autoOrient()
  const black = masks.map(([x, y, w, h]) => {
    const [left, top] = [Math.floor(x * size.width), Math.floor(y * size.height)]
    const [right, bottom] = [Math.min(size.width, Math.ceil((x + w) * size.width)), Math.min(size.height, Math.ceil((y + h) * size.height))]
    return { input: { create: { width: Math.max(1, right - left), height: Math.max(1, bottom - top), channels: 3 as const, background: 'black' } }, left, top }
  })
  const masked = black.length === 0 ? undefined : await upright.composite(black).raw().toBuffer({ resolveWithObject: true })
  const whole = masked ? sharp(masked.data, { raw: masked.info }) : upright
  const { data, info } = await (isSmaller ? whole.resize({ width }) : whole).jpeg({ quality: Math.round(100 - 3 * (quality - 2)) }).toBuffer({ resolveWithObject: true })
  return { ...picture, bytes: data, extension: 'jpg', width: info.width, height: info.height }
}

/** `motionWidth` × `motionHeight` bytes. */
export async function grayOf(bytes: Buffer): Promise<Uint8Array> {
  return sharp(bytes).resize(motionWidth, motionHeight, { fit: 'fill' }).toColourspace('b-w').raw().toBuffer()
}
