/**
 * A past range again, on a topic of its own: for training, for trying another preprocessing, for a program of yours.
 * P1  What is read is frozen when it begins: offsets per partition, from the catalog's event times.
 * P2  Copies go to a side topic only, partition by partition, in transactions, and say where they come from and that
 *     they have no effect (`fl-effects: none`); a stage that meets one on a live topic refuses it.
 * P3  How far it came is read from the side topic itself, so a killed replay goes on where it was, nothing twice.
 * P4  What it read is one manifest with one digest, made from what lies on the side topic.
 */
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool, Sql } from '@frameloop/kit/postgres'
import type { EpochMs } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import { bucketName, manifestKey, replayPrefix } from '@frameloop/schemas/object-keys'
import { topics } from '@frameloop/schemas/topics'
import { historyBatches, planReadings, type Reading, readHistory } from '../archive/history.ts'
import type { Produced, TopicPartition } from '../chain/bus.ts'
import { type Range, readTopic, TransactionalProducer } from '../chain/kafka-bus.ts'
import { inOrder } from '../chain/run-stage.ts'
import type { BusRecord } from '../chain/stage.ts'
import { prepareFrame } from '../features/features.ts'
import { needsReference, type Preprocessing } from '../features/prepare.ts'
import { latestReferences, selectZones, type TaskZone, wholePicture } from '../features/zones.ts'
import type { PixelWork } from '../pixels/pixel-work.ts'

/** Topics that can be replayed, the catalog's table that knows the event times of what lies on them, and where its backlog lies. */
const replayable: Readonly<Record<string, { readonly table: 'media' | 'frames'; readonly backlog?: string }>> = {
  [topics.mediaCaptured.name]: { table: 'media', backlog: topics.mediaBackfill.name },
  [topics.mediaValidated.name]: { table: 'media', backlog: topics.mediaValidatedBackfill.name },
  [topics.framesExtracted.name]: { table: 'frames', backlog: topics.framesExtractedBackfill.name },
  [topics.featuresPrepared.name]: { table: 'frames' },
  [topics.predictionsMade.name]: { table: 'frames' },
}

export interface ReplayRequest {
  readonly topic: string
  /** Event time, from (inclusive) to (exclusive). */
  readonly from: EpochMs
  readonly to: EpochMs
  readonly cameras: readonly string[] | null
  /** Only features that this task asks about; with `preprocessing`, only its zones. */
  readonly task: string | null
  /** Times real time; null: as fast as it goes. */
  readonly speed: number | null
  /** Frames are prepared anew in this way instead of copied as they were. */
  readonly preprocessing: Preprocessing | null
}

export interface Replay {
  readonly id: string
  readonly into: string
  readonly request: ReplayRequest
  readonly ranges: readonly Range[]
}

export interface ReplayTools {
  readonly pool: Pool
  readonly brokers: string
  readonly store: ObjectStore
  readonly codec: Codec
  readonly bucketPrefix: string
  readonly log: Log
  readonly pixels: PixelWork
  /** Offsets passed of those there are, and records copied. */
  readonly onProgress: (done: number, total: number, copied: number) => void
}

const placeOf = ({ topic, partition }: TopicPartition): string => `${topic} ${partition}`

/** The topics that a replay reads; none for what cannot be replayed. */
export function sourcesOf({ topic, preprocessing }: ReplayRequest): string[] {
  const source = preprocessing ? topics.framesExtracted.name : topic
  const of = replayable[source]
  return of ? [source, ...(of.backlog ? [of.backlog] : [])] : []
}

/** P1. Throws `REQUEST_INVALID` and, when nothing lies in the range, `FRAME_UNKNOWN`. */
export async function freezeRanges(sql: Sql, request: ReplayRequest): Promise<Range[]> {
  const sources = sourcesOf(request)
  const [source = ''] = sources
  const of = replayable[source]
  if (!of || !replayable[request.topic]) throw new Fault('REQUEST_INVALID', `${request.topic} cannot be replayed; topics that can: ${Object.keys(replayable).join(', ')}`)
  if (request.preprocessing && request.topic !== topics.featuresPrepared.name)
    throw new Fault('REQUEST_INVALID', `Only ${topics.featuresPrepared.name} can be prepared in another way`)
  if (request.preprocessing && needsReference(request.preprocessing)) {
    const cameras = [...(await latestReferences(sql)).keys()]
    if (!cameras.some((camera) => request.cameras === null || request.cameras.includes(camera)))
      throw new Fault('REQUEST_INVALID', 'No camera of these has a reference picture to compare with; `frameloop references build CAMERA` makes one')
  }
  if (!(request.from < request.to)) throw new Fault('REQUEST_INVALID', 'The range ends before it begins')
  const { table } = of
  const [id, at] = table === 'media' ? ['media_id', 'captured_at'] : ['frame_id', 'frame_at']
  const { rows } = await sql.query<Range>(
    `select h.topic, h.partition, min(h.record_offset) as "from", max(h.record_offset) + 1 as until from ${table} s join hops h on h.subject_id = s.${id} and h.topic = any($1)
     where s.${at} >= $2 and s.${at} < $3 and ($4::text[] is null or s.camera_id = any($4)) group by h.topic, h.partition order by h.topic, h.partition`,
    [sources, new Date(request.from), new Date(request.to), request.cameras],
  )
  if (rows.length === 0) throw new Fault('FRAME_UNKNOWN', `Nothing of ${source} lies between ${new Date(request.from).toISOString()} and ${new Date(request.to).toISOString()}`)
  return rows
}

/** Whether a record of the ranges belongs to the replay: by its headers alone where that is enough. */
export function belongs(record: BusRecord, { from, to, cameras }: ReplayRequest): boolean {
  const at = Date.parse(record.headers['ce_time'] ?? '')
  return at >= from && at < to && (cameras === null || cameras.includes(record.key))
}

const eventTime = (record: BusRecord): EpochMs => Date.parse(record.headers['ce_time'] ?? '') || record.timestamp

const originOf = (headers: BusRecord['headers']): string => placeOf({ topic: headers['fl-origin-topic'] ?? '', partition: Number(headers['fl-origin-partition']) })

/** P3: the first offset of each source partition that is not on the side topic yet. */
async function resumeFrom(ranges: readonly Range[], into: string, brokers: string, signal: AbortSignal): Promise<Range[]> {
  const last = new Map<string, number>()
  for await (const { headers } of readTopic(brokers, 'frameloop.replay.resume', into, signal)) {
    const place = originOf(headers)
    last.set(place, Math.max(last.get(place) ?? -1, Number(headers['fl-origin-offset'])))
  }
  return ranges.map((range) => ({ ...range, from: Math.max(range.from, (last.get(placeOf(range)) ?? -1) + 1) }))
}

/** Of one transaction. */
const mostRecords = 2_000
const mostBytes = 8_000_000
/** Frames prepared for one transaction: their pixels travel in the records. */
const mostPrepared = 128
const prepareLimit = 8

/** Copies until the ranges are read; ends early, with everything in order, when the signal comes. Returns whether it came to the end. */
export async function runReplay(replay: Replay, tools: ReplayTools, signal: AbortSignal): Promise<boolean> {
  const { request, into, id } = replay
  const { brokers } = tools
  const producer = await TransactionalProducer.open(brokers, `frameloop.replay.${id}`, tools.log)
  const history = { brokers, sql: tools.pool, store: tools.store }
  try {
    const ranges = await resumeFrom(replay.ranges, into, brokers, signal)
    const total = replay.ranges.reduce((sum, { from, until }) => sum + until - from, 0)
    const left = new Map(ranges.map((range) => [placeOf(range), range.until - range.from]))
    const ends = new Map(ranges.map((range) => [placeOf(range), range.until]))
    const readings = await planReadings(ranges, history)
    const transform = await copier(replay, tools)
    let copied = 0
    let batch: BusRecord[] = []
    let bytes = 0
    const limit = request.preprocessing ? mostPrepared : mostRecords
    /** The batch before, made and committed: the next one is read and begun meanwhile, so that there is always something to make. */
    let committing: Promise<void> = Promise.resolve()
    const flush = async (): Promise<void> => {
      const making = inOrder(batch, prepareLimit, transform)
      batch = []
      bytes = 0
      // whoever waits for the commit is told
      making.catch(() => {})
      await committing
      committing = making.then(async (made) => {
        const produced = made.filter((one) => one !== undefined)
        if (produced.length > 0) await producer.transact(produced, [], undefined)
        copied += produced.length
        tools.onProgress(total - [...left.values()].reduce((sum, open) => sum + open, 0), total, copied)
      })
      committing.catch(() => {})
    }
    const name = 'frameloop.replay'
    const batches =
      request.speed === null ? historyBatches(readings, history, name, signal) : singly(mergeByTime(readings.map((reading) => readHistory([reading], history, name, signal))))
    const pace = paceOf(request.speed)
    try {
      for await (const records of batches) {
        for (const record of records) {
          left.set(placeOf(record), (ends.get(placeOf(record)) ?? 0) - record.offset - 1)
          if (!belongs(record, request)) continue
          const early = pace(eventTime(record), Date.now())
          // what is due goes out before the next one is waited for
          if (early > 0) {
            await flush()
            await committing
            await sleep(early, undefined, { signal })
          }
          batch.push(record)
          bytes += record.value.length
          if (batch.length >= limit || bytes >= mostBytes) await flush()
        }
      }
    } catch (thrown) {
      // when it failed, either that is what was thrown, or whoever resumes reads how far it came
      await committing.catch(() => {})
      if (!signal.aborted) throw thrown
      return false
    }
    await flush()
    await committing
    tools.onProgress(total, total, copied)
    return !signal.aborted
  } finally {
    await producer.discard()
  }
}

/** How long a record must wait to keep its distance in event time, at `speed` times real time. */
export function paceOf(speed: number | null): (eventAt: EpochMs, now: EpochMs) => number {
  let first: { readonly eventAt: EpochMs; readonly now: EpochMs } | undefined
  return (eventAt, now) => {
    if (speed === null) return 0
    first ??= { eventAt, now }
    return Math.max(0, first.now + (eventAt - first.eventAt) / speed - now)
  }
}

/** Several streams, each in order, as one in the order of event time. */
export async function* mergeByTime(streams: readonly AsyncGenerator<BusRecord>[]): AsyncGenerator<BusRecord> {
  const heads = await Promise.all(streams.map(async (stream) => ({ stream, next: await stream.next() })))
  try {
    for (;;) {
      const [first] = heads.filter(({ next }) => !next.done).sort((a, b) => eventTime(a.next.value as BusRecord) - eventTime(b.next.value as BusRecord))
      if (!first) return
      yield first.next.value as BusRecord
      first.next = await first.stream.next()
    }
  } finally {
    await Promise.all(streams.map((stream) => stream.return(undefined)))
  }
}

async function* singly(records: AsyncIterable<BusRecord>): AsyncGenerator<readonly BusRecord[]> {
  for await (const record of records) yield [record]
}

/** P2: what becomes of one record on the side topic; undefined where the task does not ask about it. */
async function copier({ id, into, request }: Replay, tools: ReplayTools): Promise<(record: BusRecord) => Produced | undefined | Promise<Produced | undefined>> {
  const marked = (record: BusRecord, value: Buffer, headers: Readonly<Record<string, string>>): Produced => ({
    topic: into,
    partition: record.partition,
    key: record.keyBytes ?? record.key,
    value,
    headers: {
      ...headers,
      'fl-replay-id': id,
      'fl-effects': 'none',
      'fl-origin-topic': record.topic,
      'fl-origin-partition': String(record.partition),
      'fl-origin-offset': String(record.offset),
    },
  })
  const { preprocessing, task } = request
  if (preprocessing === null) {
    const copied = (record: BusRecord): Produced => marked(record, record.value, record.headers)
    if (task === null || request.topic !== topics.featuresPrepared.name) return copied
    return async (record) => {
      const { zones } = await tools.codec.decode('FeaturesPrepared', record.value)
      return zones.some(({ tasks }) => tasks.includes(task)) ? copied(record) : undefined
    }
  }
  const zones = await selectZones(tools.pool)
  const references = needsReference(preprocessing) ? await latestReferences(tools.pool) : undefined
  const of = (cameraId: string): TaskZone[] => {
    const reference = references?.get(cameraId)
    // nothing can be compared with what a camera does not have
    if (references && !reference) return []
    const asked = (zones.get(cameraId) ?? wholePicture).filter((zone) => task === null || zone.task === task)
    // once each, however many ways it is prepared in live
    const once = new Map(asked.map(({ shape, task: of }) => [`${shape.zone} ${of}`, { shape, task: of, preprocessing, ...(reference ? { reference } : {}) }]))
    return [...once.values()]
  }
  return async (record) => {
    const event = await tools.codec.decode('FrameExtracted', record.value)
    const asked = of(event.cameraId)
    if (asked.length === 0) return undefined
    const [prepared] = await prepareFrame(event, asked, {
      bucket: bucketName(tools.bucketPrefix, 'processed'),
      prefix: replayPrefix(id),
      fetch: ({ bucket, key }) => tools.store.get(bucket, key),
      now: Date.now,
      pixels: tools.pixels,
    })
    if (!prepared) return undefined
    if (prepared.put) {
      const { role, ...put } = prepared.put
      await tools.store.putOnce({ bucket: bucketName(tools.bucketPrefix, role), ...put })
    }
    const made = await recordOf(tools.codec, topics.featuresPrepared, prepared.event, {
      key: event.cameraId,
      id: event.frameId,
      time: event.frameAt,
      source: `replay/${id}`,
      traceparent: record.headers['traceparent'] ?? '',
    })
    return marked(record, made.value, made.headers)
  }
}

export interface Manifest {
  readonly digest: string
  readonly records: number
  readonly text: string
}

/** P4: what lies on the side topic, against what was to be read. */
export async function manifestOf(replay: Replay, readings: readonly Reading[], brokers: string, signal: AbortSignal): Promise<Manifest> {
  const { request, ranges, into } = replay
  const ids = new Map(ranges.map((range) => [placeOf(range), { hash: createHash('sha256'), records: 0, last: -1 }]))
  for await (const { headers } of readTopic(brokers, 'frameloop.replay.manifest', into, signal)) {
    const part = ids.get(originOf(headers))
    const offset = Number(headers['fl-origin-offset'])
    if (!part || offset <= part.last) throw new Fault('INTERNAL', `The side topic ${into} holds offset ${offset} of ${originOf(headers)} twice or out of order`)
    part.hash.update(`${offset} ${headers['ce_id']}\n`)
    part.records += 1
    part.last = offset
  }
  const read = ranges.map(({ topic, partition, from, until }) => {
    const part = ids.get(placeOf({ topic, partition }))
    return { topic, partition, from, until, records: part?.records ?? 0, ids: part?.hash.digest('hex') ?? '' }
  })
  const { speed: _, ...asked } = request
  const content = { request: { ...asked, from: new Date(asked.from).toISOString(), to: new Date(asked.to).toISOString() }, read }
  // the same records make the same digest, wherever they lay by then; the archive's files are named beside
  const digest = sha256Hex(Buffer.from(JSON.stringify(content)))
  const archive = readings.flatMap(({ files }) => files.filter(({ object_key }) => object_key !== '').map(({ object_key, sha256 }) => ({ key: object_key, sha256 })))
  return { digest, records: read.reduce((sum, { records }) => sum + records, 0), text: JSON.stringify({ digest, ...content, archive }, null, 2) }
}

/** Stores the manifest under its digest; the same content is stored once. */
export async function storeManifest({ digest, text }: Manifest, { store, bucketPrefix }: ReplayTools): Promise<void> {
  await store
    .putOnce({ bucket: bucketName(bucketPrefix, 'datasets'), key: manifestKey(digest), body: Buffer.from(text), contentType: 'application/json' })
    .catch((thrown: unknown) => {
      // read from the archive once and from Kafka another time: the first account stands
      if (!(thrown instanceof Fault && thrown.code === 'OBJECT_CONFLICT')) throw thrown
    })
}
