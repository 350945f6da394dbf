/**
 * Picture → the pixels a model sees. The chain, training and serving call this one function, so that what is served is
 * what was trained; the digest names its parameters, its decoder and its code.
 */
import { createHash } from 'node:crypto'
import { areaResize, type Rectangle } from '../picture/area-resize.ts'
import type { Picture } from '../picture/decode-picture.ts'
import { measureQuality, type Quality } from '../picture/quality.ts'

export interface Preprocessing {
  /** Pixels of the model's input. */
  readonly width: number
  readonly height: number
}

/** A zone as it was drawn: on a picture of `pictureWidth` x `pictureHeight`. */
export interface ZoneShape extends Rectangle {
  readonly zone: string
  readonly pictureWidth: number
  readonly pictureHeight: number
}

/** Changes whenever equal parameters would give other pixels. */
const codeVersion = 'area-1'
const decoderVersion = 'libjpeg-turbo islow, fancy upsampling, scaled to at least 2x; others libvips'

/** 16 hex digits that name a preprocessing for good. */
export function preprocessingDigest({ width, height }: Preprocessing): string {
  return createHash('sha256')
    .update(JSON.stringify([codeVersion, decoderVersion, 'rgb', width, height]))
    .digest('hex')
    .slice(0, 16)
}

/** The zone on a picture of another size, in whole pixels and inside the picture. */
export function fitZone(zone: ZoneShape, width: number, height: number): Rectangle {
  const across = width / zone.pictureWidth
  const down = height / zone.pictureHeight
  const x = Math.min(width - 1, Math.max(0, Math.round(zone.x * across)))
  const y = Math.min(height - 1, Math.max(0, Math.round(zone.y * down)))
  return { x, y, width: Math.max(1, Math.min(width - x, Math.round(zone.width * across))), height: Math.max(1, Math.min(height - y, Math.round(zone.height * down))) }
}

/** How large the whole picture must be decoded so that its smallest zone still has the model's size. */
export function neededSize(zones: readonly ZoneShape[], { width, height }: Preprocessing): { readonly width: number; readonly height: number } {
  const share = (pick: (zone: ZoneShape) => number): number => Math.min(1, ...zones.map(pick))
  return { width: Math.ceil(width / share((zone) => zone.width / zone.pictureWidth)), height: Math.ceil(height / share((zone) => zone.height / zone.pictureHeight)) }
}

export interface PreparedZone {
  /** On the picture at full size. */
  readonly rectangle: Rectangle
  /** Uint8Array [height, width, 3], RGB. */
  readonly pixels: Uint8Array
  readonly quality: Quality
}

export function prepareZone(picture: Picture, zone: ZoneShape, { width, height }: Preprocessing): PreparedZone {
  const pixels = areaResize(picture.rgb, picture.width, fitZone(zone, picture.width, picture.height), width, height)
  return { rectangle: fitZone(zone, picture.fullWidth, picture.fullHeight), pixels, quality: measureQuality(pixels, width, height) }
}
