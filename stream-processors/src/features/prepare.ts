/**
 * Picture → the pixels a model sees. The chain, training and serving call this one function, so that what is served is
 * what was trained; the digest names its parameters, its decoder and its code.
 */
import { createHash } from 'node:crypto'
import { Fault } from '@frameloop/kit/fault'
import type { Picture } from '../picture/decode-picture.ts'
import { denoise, difference, equalise, sharpen, toGray } from '../picture/filters.ts'
import { measureQuality, type Quality } from '../picture/quality.ts'
import { type Kernel, type Rectangle, resize } from '../picture/resize.ts'

export const kernels = ['area', 'linear', 'cubic', 'lanczos'] as const satisfies readonly Kernel[]
export const colours = ['rgb', 'gray'] as const
/** `difference`: to the camera's reference picture, prepared the same way up to this filter. */
export const filters = ['equalise', 'denoise', 'sharpen', 'difference'] as const
export type Filter = (typeof filters)[number]

/** What a task declares. Crop, resize, colour, then the filters in their order. */
export interface Preprocessing {
  /** Pixels of the model's input. */
  readonly width: number
  readonly height: number
  /** `area` unless stated. */
  readonly kernel?: Kernel
  /** `rgb` unless stated. */
  readonly colour?: (typeof colours)[number]
  readonly filters?: readonly Filter[]
}

export function channelsOf({ colour }: Preprocessing): number {
  return colour === 'gray' ? 1 : 3
}

export function needsReference({ filters: asked = [] }: Preprocessing): boolean {
  return asked.includes('difference')
}

/** A zone as it was drawn: on a picture of `pictureWidth` x `pictureHeight`. */
export interface ZoneShape extends Rectangle {
  readonly zone: string
  readonly pictureWidth: number
  readonly pictureHeight: number
}

/** Changes whenever equal parameters would give other pixels. */
const codeVersion = 'area-3'
const decoderVersion = 'libjpeg-turbo islow, fancy upsampling, scaled to at least 1x; others libvips'

/** 16 hex digits that name a preprocessing for good. What is not stated does not count, so a new parameter renames nothing. */
export function preprocessingDigest({ width, height, kernel = 'area', colour = 'rgb', filters: asked = [] }: Preprocessing): string {
  const further = kernel === 'area' && asked.length === 0 ? [] : [kernel, asked]
  return createHash('sha256')
    .update(JSON.stringify([codeVersion, decoderVersion, colour, width, height, ...further]))
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
  /** Uint8Array [height, width, channels]. */
  readonly pixels: Uint8Array
  /** Of the crop before colour and filters. */
  readonly quality: Quality
}

/** The zone at the model's size, before colour and filters. */
function cropZone(picture: Picture, zone: ZoneShape, { width, height, kernel }: Preprocessing): { readonly rectangle: Rectangle; readonly rgb: Uint8Array } {
  const rectangle = fitZone(zone, picture.fullWidth, picture.fullHeight)
  // the same place at every scale: its edges may lie inside the pixels of a picture that was shrunk while decoding
  const crop = { x: rectangle.x / picture.scale, y: rectangle.y / picture.scale, width: rectangle.width / picture.scale, height: rectangle.height / picture.scale }
  return { rectangle, rgb: resize(picture.rgb, picture.width, crop, width, height, kernel) }
}

function filtered(rgb: Uint8Array, zone: ZoneShape, preprocessing: Preprocessing, reference: Picture | undefined): Uint8Array {
  const { filters: asked = [] } = preprocessing
  return asked.reduce((pixels, _, step) => applyFilter(pixels, step, zone, preprocessing, reference), colouredAs(rgb, preprocessing))
}

/** `reference` is the camera's whole reference picture; throws when the preprocessing needs one and there is none. */
export function prepareZone(picture: Picture, zone: ZoneShape, preprocessing: Preprocessing, reference?: Picture): PreparedZone {
  const { rectangle, rgb } = cropZone(picture, zone, preprocessing)
  return { rectangle, pixels: filtered(rgb, zone, preprocessing, reference), quality: measureQuality(rgb, preprocessing.width, preprocessing.height) }
}

/** The pixels alone, of a preprocessing that needs no reference picture. */
export function preparePixels(picture: Picture, zone: ZoneShape, preprocessing: Preprocessing): Uint8Array {
  return filtered(cropZone(picture, zone, preprocessing).rgb, zone, preprocessing, undefined)
}

const colouredAs = (rgb: Uint8Array, { colour }: Preprocessing): Uint8Array => (colour === 'gray' ? toGray(rgb) : rgb)

function applyFilter(pixels: Uint8Array, step: number, zone: ZoneShape, preprocessing: Preprocessing, reference: Picture | undefined): Uint8Array {
  const { width, height, filters: asked = [] } = preprocessing
  const channels = channelsOf(preprocessing)
  switch (asked[step]) {
    case 'equalise':
      return equalise(pixels, channels)
    case 'denoise':
      return denoise(pixels, width, height, channels)
    case 'sharpen':
      return sharpen(pixels, width, height, channels)
    case 'difference':
      if (!reference) throw new Fault('INTERNAL', 'A difference was asked for without a reference picture')
      return difference(pixels, referenceZone(reference, zone, { ...preprocessing, filters: asked.slice(0, step) }))
    default:
      return pixels
  }
}

const referenceZones = new WeakMap<Picture, Map<string, Uint8Array>>()

/** The zone of a reference picture, prepared once per zone and preprocessing. */
function referenceZone(reference: Picture, zone: ZoneShape, preprocessing: Preprocessing): Uint8Array {
  const known = referenceZones.get(reference) ?? new Map<string, Uint8Array>()
  referenceZones.set(reference, known)
  const key = `${preprocessingDigest(preprocessing)} ${JSON.stringify(zone)}`
  const pixels = known.get(key) ?? prepareZone(reference, zone, preprocessing).pixels
  known.set(key, pixels)
  return pixels
}
