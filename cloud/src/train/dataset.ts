/**
 * Labels and the stream → a dataset: an immutable manifest of offset ranges, object digests and labels as of a time.
 * D1  Labels outside the range asked for are never read: changing them changes nothing.
 * D2  Each (picture, zone) is in it once, however often the footage was played: prepared where the zone lay last, and with
 *     the latest word about any of them.
 * D3  Equal frames and labels give an equal manifest and so an equal digest, whenever it is built.
 */

import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { Bytes, EpochMs, Us } from '@frameloop/kit/units'
import type { Codec } from '@frameloop/schemas/codec'
import type { FeaturesPrepared } from '@frameloop/schemas/events'
import { type Range, readBounds, readRanges } from '@frameloop/stream-processors/chain/kafka-bus'
import { channelsOf, needsReference, type Preprocessing, preprocessingDigest } from '@frameloop/stream-processors/features/prepare'

export interface DatasetQuery {
  readonly task: string
  readonly cameraId: string | null
  /** Media offsets, from (inclusive) until (exclusive). */
  readonly fromOffsetUs: Us | null
  readonly untilOffsetUs: Us | null
  readonly fromTime: EpochMs | null
  readonly untilTime: EpochMs | null
}

export interface Example {
  readonly frameId: string
  readonly cameraId: string
  readonly zone: string
  readonly label: string
  /** Media offset in ms where there is one, else capture time. */
  readonly at: number
  readonly pictureSha256: string
  /** Uint8Array [height, width, channels]. */
  readonly pixels: Uint8Array
}

export interface Dataset {
  readonly digest: string
  readonly manifest: string
  readonly examples: readonly Example[]
  readonly classes: readonly string[]
  readonly preprocessing: Preprocessing
  readonly preprocessingDigest: string
  /** Per camera: sha256 of the reference picture that its pixels were compared with. */
  readonly referencePictures: Readonly<Record<string, string>>
  readonly cutAt: EpochMs
}

interface Row {
  readonly frame_id: string
  readonly camera_id: string
  readonly zone: string
  readonly label: string
  readonly recorded_at: Date
  readonly media_offset_us: number | null
  readonly frame_at: Date
  readonly picture_sha256: string
  readonly preprocessing: string
  readonly topic: string
  readonly partition: number
  readonly record_offset: number
  readonly bucket: string
  readonly object_key: string
  readonly zones: FeaturesPrepared['zones']
  /** Empty where it was compared with none. */
  readonly reference: string
}

/** What a dataset may take in memory; the newest examples of each label of a zone, as many of each, and what is said of single frames. */
const mostBytes: Bytes = 500_000_000
const fewestOfEach = 200
/** What an example takes beside its pixels: its row, with all zones of its frame, and its line of the manifest. */
const besidePixels: Bytes = 4_000

/** Features that a current label speaks of, by frame, by media offset or by capture time. */
const selectLabelled = `
  select * from (select f.frame_id, f.camera_id, l.zone, l.label, l.recorded_at, f.media_offset_us, f.frame_at, f.picture_sha256, f.preprocessing, f.topic, f.partition, f.record_offset, f.bucket, f.object_key, f.zones, coalesce(f.parameters->>'reference', '') as reference,
    row_number() over (partition by l.camera_id, l.zone, l.label order by f.frame_at desc, f.frame_id) as newest, l.frame_id is not null as is_about_frame
  from labels l
  join features f on f.camera_id = l.camera_id
    and ((l.frame_id is not null and f.frame_id = l.frame_id)
      or (l.media_offset_us is not null and f.media_offset_us = l.media_offset_us)
      or (l.frame_at is not null and f.frame_at = l.frame_at))
  where l.task = $1 and l.superseded_at is null and f.preprocessing = $7 and (cardinality($9::text[]) = 0 or l.label = any($9))
    and coalesce(f.parameters->>'reference', '') = coalesce((select r.sha256 from reference_pictures r where $8 and r.camera_id = f.camera_id order by r.version desc limit 1), '')
    and ($2::text is null or l.camera_id = $2)
    and ($3::bigint is null or f.media_offset_us >= $3) and ($4::bigint is null or f.media_offset_us < $4)
    and ($5::timestamptz is null or f.frame_at >= $5) and ($6::timestamptz is null or f.frame_at < $6)
) labelled where newest <= $10 or is_about_frame
  order by camera_id, zone, picture_sha256, frame_at, frame_id, recorded_at, label`

/** A task that came later is not named by what was prepared before, which shows the same place where there is one of that name. */
function zoneOf(row: Pick<Row, 'zone' | 'zones'>, task: string): FeaturesPrepared['zones'][number] | undefined {
  const named = row.zones.filter((one) => one.zone === row.zone)
  return named.find(({ tasks }) => tasks.includes(task)) ?? (named.length === 1 ? named[0] : undefined)
}

/** D2: what stands for rows about one zone of equal pictures, the oldest first; nothing where none of them was prepared with the zone. */
export function oneOf<Like extends Pick<Row, 'zone' | 'zones' | 'label' | 'recorded_at'>>(rows: readonly Like[], task: string): Like | undefined {
  const placeOf = (row: Like): string | undefined => {
    const zone = zoneOf(row, task)
    return zone && [zone.x, zone.y, zone.width, zone.height].join(' ')
  }
  const prepared = rows.filter((row) => placeOf(row) !== undefined)
  const last = prepared.at(-1)
  const chosen = prepared.find((row) => last && placeOf(row) === placeOf(last))
  const latest = rows.reduce<Like | undefined>((newest, row) => (newest && newest.recorded_at > row.recorded_at ? newest : row), undefined)
  return chosen && latest && { ...chosen, label: latest.label }
}

/** The labelled frames that have been prepared. An empty dataset is returned as it is. */
export async function buildDataset(pool: Pool, brokers: string, codec: Codec, store: ObjectStore, query: DatasetQuery, signal: AbortSignal): Promise<Dataset> {
  const time = (at: EpochMs | null): Date | null => (at === null ? null : new Date(at))
  const tasks = await pool.query<{ preprocessing: Preprocessing; classes: string[] }>('select preprocessing, classes from tasks where task = $1', [query.task])
  const { preprocessing, classes: allowed } = tasks.rows[0] ?? {}
  if (!preprocessing) throw new Fault('TASK_UNKNOWN', `There is no task ${query.task}`)
  const named = preprocessingDigest(preprocessing)
  const range = [query.fromOffsetUs, query.untilOffsetUs, time(query.fromTime), time(query.untilTime)]
  // of what is asked for: labels elsewhere change nothing about it
  const groups = await pool.query<{ count: number }>(
    `select count(distinct (camera_id, zone, label)) as count from labels where task = $1 and superseded_at is null and ($2::text is null or camera_id = $2)
       and (media_offset_us is null or (($3::bigint is null or media_offset_us >= $3) and ($4::bigint is null or media_offset_us < $4)))
       and (frame_at is null or (($5::timestamptz is null or frame_at >= $5) and ($6::timestamptz is null or frame_at < $6)))`,
    [query.task, query.cameraId, ...range],
  )
  const size = besidePixels + preprocessing.width * preprocessing.height * channelsOf(preprocessing)
  const ofEach = Math.max(fewestOfEach, Math.floor(mostBytes / size / Math.max(1, groups.rows[0]?.count ?? 1)))
  const { rows } = await pool.query<Row>(selectLabelled, [query.task, query.cameraId, ...range, named, needsReference(preprocessing), allowed ?? [], ofEach])
  const equal = new Map<string, Row[]>()
  for (const row of rows) {
    const key = `${row.camera_id} ${row.zone} ${row.picture_sha256}`
    const list = equal.get(key)
    if (list) list.push(row)
    else equal.set(key, [row])
  }
  const once = [...equal.values()].flatMap((list) => oneOf(list, query.task) ?? [])
  const wanted = new Map<string, Row[]>()
  const ranges = new Map<string, Range>()
  for (const row of once) {
    const name = recordName({ frameId: row.frame_id, preprocessing: row.preprocessing, reference: row.reference })
    wanted.set(name, [...(wanted.get(name) ?? []), row])
    const key = `${row.topic} ${row.partition}`
    const range = ranges.get(key)
    ranges.set(key, {
      topic: row.topic,
      partition: row.partition,
      from: Math.min(range?.from ?? row.record_offset, row.record_offset),
      until: Math.max(range?.until ?? 0, row.record_offset + 1),
    })
  }
  const examples: Example[] = []
  const take = (rowsOf: readonly Row[], pixels: Uint8Array): void => {
    for (const row of rowsOf) {
      const zone = zoneOf(row, query.task)
      if (!zone) continue
      const size = zone.shape.reduce((product, side) => product * side, 1)
      examples.push({
        frameId: row.frame_id,
        cameraId: row.camera_id,
        zone: row.zone,
        label: row.label,
        at: row.media_offset_us === null ? row.frame_at.getTime() : row.media_offset_us / 1000,
        pictureSha256: row.picture_sha256,
        pixels: new Uint8Array(pixels.subarray(zone.offset, zone.offset + size)),
      })
    }
  }
  // what Kafka no longer keeps is read from the object store below
  const kept = await readBounds(brokers, 'frameloop.train.replay', [...new Set([...ranges.values()].map(({ topic }) => topic))])
  const readable = [...ranges.values()].map((one) => ({
    ...one,
    from: Math.max(one.from, kept.find(({ topic, partition }) => topic === one.topic && partition === one.partition)?.from ?? one.until),
  }))
  for await (const record of readRanges(brokers, 'frameloop.train.replay', readable, signal)) {
    const event = await codec.decode('FeaturesPrepared', record.value)
    const name = recordName({ ...event, reference: event.reference?.sha256 ?? '' })
    const rowsOf = wanted.get(name)
    if (!rowsOf || !event.pixels) continue
    take(rowsOf, event.pixels)
    wanted.delete(name)
  }
  // too large to travel in their record, or older than the topic keeps: the same pixels lie in the object store
  const stored = [...wanted.values()]
  for (let from = 0; from < stored.length; from += 16) {
    const part = stored.slice(from, from + 16)
    const pixels = await Promise.all(part.map(([row]) => store.get(row?.bucket ?? '', row?.object_key ?? '', signal).catch(ifErased)))
    part.forEach((rowsOf, at) => {
      if (pixels[at]) take(rowsOf, pixels[at])
    })
  }
  examples.sort((a, b) => compare(a.cameraId, b.cameraId) || compare(a.zone, b.zone) || a.at - b.at || compare(a.frameId, b.frameId))
  const classes = [...new Set(examples.map(({ label }) => label))].sort()
  const used = new Set(examples.map(({ frameId }) => frameId))
  const cutAt = once.filter((row) => used.has(row.frame_id)).reduce((latest, row) => Math.max(latest, row.frame_at.getTime()), 0)
  const referencePictures = Object.fromEntries(once.flatMap(({ camera_id, reference }) => (reference ? [[camera_id, reference]] : [])))
  const content = {
    task: query.task,
    preprocessing: named,
    ...(Object.keys(referencePictures).length > 0 ? { referencePictures } : {}),
    classes,
    items: examples.map(({ cameraId, zone, at, label, pictureSha256, pixels }) => [cameraId, zone, at, label, pictureSha256, sha256Hex(pixels)]),
  }
  // D3: where the frames lie on the bus is told beside, and is no part of the digest
  const digest = sha256Hex(Buffer.from(JSON.stringify(content)))
  const manifest = JSON.stringify({ digest, ...content, ranges: [...ranges.values()], frames: examples.map(({ frameId }) => frameId), cutAt: new Date(cutAt).toISOString(), query })
  return { digest, manifest, examples, classes, preprocessing, preprocessingDigest: named, referencePictures, cutAt }
}

/** One frame is prepared in several ways, and against several reference pictures. */
function recordName({ frameId, preprocessing, reference }: { readonly frameId: string; readonly preprocessing: string; readonly reference: string }): string {
  return `${frameId} ${preprocessing} ${reference}`
}

/** What somebody removed meanwhile is left out. */
function ifErased(thrown: unknown): undefined {
  if (!(thrown instanceof Fault && thrown.code === 'OBJECT_MISSING')) throw thrown
  return undefined
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
