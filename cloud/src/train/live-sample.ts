/**
 * Is what serving sees what training would see? Pictures of frames that were answered a moment ago, prepared again here, in the
 * path of training, and compared with the pixels that the answers were given about.
 */
import { Fault } from '@frameloop/kit/fault'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Sql } from '@frameloop/kit/postgres'
import type { FeaturesPrepared } from '@frameloop/schemas/events'
import { referencesOf } from '@frameloop/stream-processors/features/features'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { selectZones } from '@frameloop/stream-processors/features/zones'
import type { PixelWork, PreparedGroup } from '@frameloop/stream-processors/pixels/pixel-work'

const sampleSize = 8

/**
 * Levels of 255, on average over a zone, by which pixels may lie apart: the decode of a picture serves all of its zones, and
 * after a zone has come or gone it may be at another scale (38 dB, 2 levels).
 */
const differenceLimit = 4

export interface LiveSample {
  readonly compared: number
  /** The frames whose zones lie further apart than they may, and by how much. */
  readonly different: readonly { readonly frameId: string; readonly cameraId: string; readonly zone: string; readonly levels: number }[]
}

interface Row {
  readonly frame_id: string
  readonly camera_id: string
  readonly preprocessing: string
  readonly bucket: string
  readonly object_key: string
  readonly zones: FeaturesPrepared['zones']
  readonly reference: string | null
  readonly picture_bucket: string
  readonly picture_key: string
}

/** Frames of a task answered in the last ten minutes, drawn by chance. */
const selectSample = `
  select * from (
    select distinct f.frame_id, f.camera_id, f.preprocessing, f.bucket, f.object_key, f.zones, f.parameters->>'reference' as reference,
      fr.bucket as picture_bucket, fr.object_key as picture_key
    from predictions p
    join features f on f.frame_id = p.frame_id and f.preprocessing = p.preprocessing and f.frame_at = p.frame_at
    join frames fr on fr.frame_id = p.frame_id and fr.frame_at = p.frame_at
    where p.task = $1 and p.answered_at > now() - interval '10 minutes' and fr.object_key <> ''
  ) answered order by random() limit $2`

/** Mean absolute difference in levels of 255; what has another size is as far apart as can be. */
export function levelsApart(one: Uint8Array, other: Uint8Array): number {
  if (one.length !== other.length || one.length === 0) return 255
  let sum = 0
  for (let at = 0; at < one.length; at += 1) sum += Math.abs((one[at] as number) - (other[at] as number))
  return sum / one.length
}

type Zone = FeaturesPrepared['zones'][number]

/** Zones that were drawn otherwise meanwhile say nothing. */
const isSamePlace = (zone: Zone, { rectangle }: PreparedGroup['zones'][number]): boolean =>
  zone.x === rectangle.x && zone.y === rectangle.y && zone.width === rectangle.width && zone.height === rectangle.height

const pixelsOf = (packed: Uint8Array, { offset, shape }: { readonly offset: number; readonly shape: readonly number[] }): Uint8Array =>
  packed.subarray(offset, offset + shape.reduce((product, side) => product * side, 1))

/** Throws what the object store throws when it is away. */
export async function compareLive(sql: Sql, store: Pick<ObjectStore, 'get'>, pixels: PixelWork, task: string): Promise<LiveSample> {
  const { rows } = await sql.query<Row>(selectSample, [task, sampleSize])
  if (rows.length === 0) return { compared: 0, different: [] }
  const zonesOf = await selectZones(sql)
  const different: LiveSample['different'][number][] = []
  let compared = 0
  for (const row of rows) {
    const zones = zonesOf.get(row.camera_id) ?? []
    const found = await Promise.all([
      store.get(row.picture_bucket, row.picture_key),
      store.get(row.bucket, row.object_key),
      referencesOf(zones, ({ bucket, key }) => store.get(bucket, key)),
    ]).catch((thrown: unknown) => {
      // erased meanwhile
      if (!(thrown instanceof Fault && thrown.code === 'OBJECT_MISSING')) throw thrown
    })
    if (!found) continue
    const [picture, served, references] = found
    const { groups } = await pixels.prepare(picture, zones, references)
    const group = groups.find(({ preprocessing, reference }) => preprocessingDigest(preprocessing) === row.preprocessing && (reference ?? null) === row.reference)
    for (const zone of row.zones) {
      const again = group?.zones.find((one) => one.zone === zone.zone && one.tasks.includes(task))
      if (!group || !again || !zone.tasks.includes(task) || !isSamePlace(zone, again)) continue
      compared += 1
      const levels = levelsApart(pixelsOf(served, zone), pixelsOf(group.packed, again))
      if (levels > differenceLimit) different.push({ frameId: row.frame_id, cameraId: row.camera_id, zone: zone.zone, levels: Math.round(levels * 10) / 10 })
    }
  }
  return { compared, different }
}

/** A sentence for a person; empty when nothing is apart. */
export function sayDifferent({ compared, different }: LiveSample): string {
  const [first] = different
  return first
    ? `${different.length} of ${compared} live inputs are not what the path of training makes of the same pictures (zone ${first.zone} of frame ${first.frameId} by ${first.levels} levels)`
    : ''
}
