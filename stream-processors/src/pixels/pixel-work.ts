/**
 * What is done to pixels, and nothing else: no network, no clock. It takes nearly all of the chain's CPU time, so processes
 * run it in threads (`pixel-threads.ts`); tests and tools run it right here. Both give the same bits.
 */
import { sha256Hex } from '@frameloop/kit/digest'
import { channelsOf, neededSize, type Preprocessing, prepareZone, preprocessingDigest } from '../features/prepare.ts'
import type { TaskZone } from '../features/zones.ts'
import { decodePicture, type Picture } from '../picture/decode-picture.ts'
import { measureQuality, type Quality } from '../picture/quality.ts'
import type { Rectangle } from '../picture/resize.ts'

/** What validate asks of a picture. */
export interface PictureLook extends Quality {
  readonly width: number
  readonly height: number
  /** Of the pixels: equal only when every pixel is. */
  readonly fingerprint: string
}

/** Zones of one preprocessing and one reference picture, their pixels one behind the other. */
export interface PreparedGroup {
  readonly preprocessing: Preprocessing
  readonly digest: string
  /** SHA-256 of the reference picture; absent when the preprocessing needs none. */
  readonly reference?: string
  readonly zones: readonly {
    readonly zone: string
    readonly tasks: readonly string[]
    /** On the picture at full size. */
    readonly rectangle: Rectangle
    readonly quality: Quality
    /** Of its pixels in `packed`. */
    readonly offset: number
    /** [height, width, channels] */
    readonly shape: readonly [number, number, number]
  }[]
  readonly packed: Uint8Array
  readonly sha256: string
}

export interface PreparedPicture {
  readonly fullWidth: number
  readonly fullHeight: number
  readonly groups: readonly PreparedGroup[]
}

export interface PixelWork {
  /** Decodes a picture shrunk to at least 160x120. Throws what `decodePicture` throws. */
  look(bytes: Uint8Array): Promise<PictureLook>
  /** One decode for all zones. `references`: bytes of the reference pictures that the zones name, by SHA-256. Throws what `decodePicture` throws. */
  prepare(bytes: Uint8Array, zones: readonly TaskZone[], references: ReadonlyMap<string, Uint8Array>): Promise<PreparedPicture>
}

interface ZoneGroup {
  readonly preprocessing: Preprocessing
  readonly digest: string
  readonly reference?: string
  readonly zones: readonly { readonly shape: TaskZone['shape']; readonly tasks: readonly string[] }[]
}

/** Zones by preprocessing and reference picture; a zone that several tasks ask about is prepared once. */
export function groupZones(zones: readonly TaskZone[]): ZoneGroup[] {
  const groups = new Map<string, Omit<ZoneGroup, 'zones'> & { readonly zones: Map<string, { shape: TaskZone['shape']; tasks: string[] }> }>()
  for (const { shape, task, preprocessing, reference } of zones) {
    const digest = preprocessingDigest(preprocessing)
    const key = `${digest} ${reference?.sha256}`
    const group = groups.get(key) ?? { preprocessing, digest, ...(reference ? { reference: reference.sha256 } : {}), zones: new Map() }
    groups.set(key, group)
    // two tasks may mean different places by one name
    const place = JSON.stringify([shape.zone, shape.x, shape.y, shape.width, shape.height, shape.pictureWidth, shape.pictureHeight])
    const zone = group.zones.get(place) ?? { shape, tasks: [] }
    group.zones.set(place, zone)
    if (task) zone.tasks.push(task)
  }
  return [...groups.values()].map((group) => ({ ...group, zones: [...group.zones.values()] }))
}

/** The largest size that any zone needs the whole picture at: one decode serves them all. */
function decodeSize(zones: readonly TaskZone[]): { readonly width: number; readonly height: number } {
  const sizes = zones.map(({ shape, preprocessing }) => neededSize([shape], preprocessing))
  return { width: Math.max(...sizes.map(({ width }) => width)), height: Math.max(...sizes.map(({ height }) => height)) }
}

const known = new Map<string, Picture>()

/** Reference pictures are few, large and never change: each thread decodes them once. */
async function referencePicture(sha256: string, bytes: Uint8Array | undefined): Promise<Picture | undefined> {
  if (!bytes) return undefined
  // a copy: it may come in memory that threads share, which decoders do not take
  const picture = known.get(sha256) ?? (await decodePicture(Uint8Array.from(bytes)))
  if (known.size >= 32) known.clear()
  known.set(sha256, picture)
  return picture
}

/** In the thread that asks. */
export const pixelWork: PixelWork = {
  async look(bytes) {
    // a scaled decode reads every bit of the data, so damage shows, at a fraction of the cost
    const { rgb, width, height, fullWidth, fullHeight } = await decodePicture(bytes, { atLeast: { width: 160, height: 120 }, always: true })
    return { width: fullWidth, height: fullHeight, ...measureQuality(rgb, width, height), fingerprint: sha256Hex(rgb).slice(0, 16) }
  },

  async prepare(bytes, zones, references) {
    const picture = await decodePicture(bytes, { atLeast: decodeSize(zones) })
    const groups: PreparedGroup[] = []
    for (const { zones: grouped, ...group } of groupZones(zones)) {
      const { width, height } = group.preprocessing
      const channels = channelsOf(group.preprocessing)
      const zoneBytes = width * height * channels
      const reference = group.reference ? await referencePicture(group.reference, references.get(group.reference)) : undefined
      const packed = new Uint8Array(zoneBytes * grouped.length)
      const prepared = grouped.map(({ shape, tasks }, at) => {
        const { rectangle, pixels, quality } = prepareZone(picture, shape, group.preprocessing, reference)
        packed.set(pixels, at * zoneBytes)
        return { zone: shape.zone, tasks, rectangle, quality, offset: at * zoneBytes, shape: [height, width, channels] as const }
      })
      groups.push({ ...group, zones: prepared, packed, sha256: sha256Hex(packed) })
    }
    return { fullWidth: picture.fullWidth, fullHeight: picture.fullHeight, groups }
  },
}
