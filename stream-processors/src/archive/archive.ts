/**
 * Every topic → Avro files in the archive bucket, for what is older than Kafka keeps.
 * A1  Where a file ends depends on the records in it alone: at the N-th offset after its first record, behind the last one of
 *     the broker's day, or before the one that would make it larger than `mostBytes`. So a second writer, or the same one after
 *     a crash, writes the same bytes under the same key. Only a file of no records ends where the partition did when somebody
 *     looked: whoever finds another end in the index has been overtaken, and begins anew.
 * A2  A file is stored before the index in PostgreSQL names it; files of a partition follow each other without a gap, but where
 *     the broker deleted records before they were read.
 * A3  Each committed record is in exactly one file. Copied pixels are left out: the record names the object that holds them.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import { stageMetrics } from '@frameloop/kit/metrics'
import { isStoreTransient } from '@frameloop/kit/object-store'
import { isDatabaseTransient, type Pool } from '@frameloop/kit/postgres'
import { backoffPause } from '@frameloop/kit/retry'
import type { Bytes, EpochMs, Ms } from '@frameloop/kit/units'
import type { Codec } from '@frameloop/schemas/codec'
import { archiveKey, bucketName } from '@frameloop/schemas/object-keys'
import { cataloguedTopics, topics } from '@frameloop/schemas/topics'
import type { Range } from '../chain/kafka-bus.ts'
import type { StageTools } from '../chain/run-stage.ts'
import type { BusRecord } from '../chain/stage.ts'
import { encodeContainer } from './container.ts'

const name = 'archive'
const batchLimit = 500
/** Of the values of a file: all open ones are in memory. */
const mostBytes: Bytes = 16_000_000
/** A partition of which nothing has come for so long, beside others, is read to its end. */
const quietTime: Ms = 60_000
const dayLength = 86_400_000
/** After midnight the last record of the day before may still be on its way to us; the broker's clock may differ from ours. */
const dayGrace = 600_000

const dayOf = (at: EpochMs): number => Math.floor(at / dayLength)

/** A file being collected: what of a partition is read and not yet stored. */
export interface OpenFile {
  readonly from: number
  readonly records: readonly BusRecord[]
  /** Of their values. */
  readonly bytes: Bytes
}

const emptyFile = (from: number): OpenFile => ({ from, records: [], bytes: 0 })

/** One past the last offset of the file that offset `from` begins, by count alone. */
export function boundaryAfter(from: number, every: number): number {
  return (Math.floor(from / every) + 1) * every
}

/** The file with one more record, and the file that this record closes, if any. */
export function append(open: OpenFile, record: BusRecord, every: number): { readonly open: OpenFile; readonly closed?: OpenFile & { readonly until: number } } {
  const [first, last] = [open.records[0], open.records.at(-1)]
  const { length } = record.value
  // markers before the first record belong to the file, however many there are
  if (first === undefined || last === undefined) return { open: { from: open.from, records: [record], bytes: length } }
  const endsEarly = dayOf(record.timestamp) > dayOf(last.timestamp) || open.bytes + length > mostBytes
  const boundary = boundaryAfter(first.offset, every)
  if (record.offset < boundary && !endsEarly) return { open: { from: open.from, records: [...open.records, record], bytes: open.bytes + length } }
  const until = endsEarly ? last.offset + 1 : boundary
  return { open: { from: until, records: [record], bytes: length }, closed: { ...open, until } }
}

/** The file that is over though no further record has come: its day has passed. */
export function closeByDay(open: OpenFile, now: EpochMs): (OpenFile & { readonly until: number }) | undefined {
  const last = open.records.at(-1)
  if (last === undefined || now < (dayOf(last.timestamp) + 1) * dayLength + dayGrace) return undefined
  return { ...open, until: last.offset + 1 }
}

/**
 * A file of no records, of markers behind the last file and before the end: when the broker has deleted them too, nobody could
 * tell any more that they were no records.
 */
export function closeMarkers(open: OpenFile, end: number): (OpenFile & { readonly until: number }) | undefined {
  return open.records.length === 0 && end > open.from ? { ...open, until: end } : undefined
}

/** A3: the pixels of prepared features lie in the object that the record names. */
async function withoutCopies(record: BusRecord, codec: Codec): Promise<BusRecord> {
  if (record.topic !== topics.featuresPrepared.name) return record
  try {
    const event = await codec.decode('FeaturesPrepared', record.value)
    return event.pixels === null ? record : { ...record, value: await codec.encode(record.topic, 'FeaturesPrepared', { ...event, pixels: null }) }
  } catch (thrown) {
    if (thrown instanceof Fault && thrown.code === 'REGISTRY_UNAVAILABLE') throw thrown
    // what cannot be read is kept as it is
    return record
  }
}

export interface ArchiveTools extends StageTools {
  /** What the broker keeps of the topics. */
  readonly readBounds: (topicNames: readonly string[]) => Promise<readonly Range[]>
}

export function startArchive(
  pool: Pool,
  tools: ArchiveTools,
  every: number,
): { readonly run: (signal: AbortSignal) => Promise<void>; readonly notReady: () => string | undefined } {
  const { log, store, codec } = tools
  const metrics = stageMetrics(tools.metrics)
  const bucket = bucketName(tools.bucketPrefix, 'archive')
  let state = 'starting'

  const write = async (topic: string, partition: number, { from, until, records }: OpenFile & { readonly until: number }, signal: AbortSignal): Promise<void> => {
    let key = archiveKey(topic, partition, from)
    const body = await encodeContainer({ topic, partition, from }, until, records)
    const sha256 = sha256Hex(body)
    const times = records.map(({ timestamp }) => timestamp)
    const put = () => store.putOnce({ bucket, key, body, sha256, contentType: 'application/avro', metadata: { topic, partition: String(partition), until: String(until) } }, signal)
    if (records.length > 0)
      await put().catch((thrown: unknown) => {
        if (!(thrown instanceof Fault && thrown.code === 'OBJECT_CONFLICT')) throw thrown
        // left behind unnamed by one that ended elsewhere, of another release say: nobody reads it, and it is in nobody's way
        log.warn({ err: thrown, topic, partition, from }, 'another file lies where this one belongs, it gets a name of its own')
        key = `${key}-${sha256.slice(0, 8)}`
        return put()
      })
    const { rowCount } = await pool.query(
      `insert into archive_files (topic, partition, from_offset, until_offset, bucket, object_key, sha256, bytes, records, from_time, until_time)
       values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) on conflict (topic, partition, from_offset) do nothing`,
      [
        topic,
        partition,
        from,
        until,
        bucket,
        records.length > 0 ? key : '',
        sha256,
        body.length,
        records.length,
        times.length > 0 ? new Date(Math.min(...times)) : null,
        times.length > 0 ? new Date(Math.max(...times)) : null,
      ],
    )
    if (rowCount === 0) {
      const { rows } = await pool.query<{ until: number }>('select until_offset as until from archive_files where topic = $1 and partition = $2 and from_offset = $3', [
        topic,
        partition,
        from,
      ])
      if (Number(rows[0]?.until) !== until) throw new Fault('INTERNAL', `Another archive has written ${topic}/${partition} from ${from} to ${rows[0]?.until}, not to ${until}`)
    }
    metrics.emitted.inc({ stage: name, topic })
    log.info({ topic, partition, from, until, records: records.length, bytes: body.length }, 'archived')
  }

  /** Waits for the object store and the database as long as they are away. */
  const insist = async (act: () => Promise<void>, signal: AbortSignal): Promise<void> => {
    for (let attempt = 1; ; attempt += 1) {
      try {
        await act()
        state = ''
        return
      } catch (thrown) {
        signal.throwIfAborted()
        const isWaiting =
          isDatabaseTransient(thrown) || (thrown instanceof Fault ? thrown.code === 'REGISTRY_UNAVAILABLE' || thrown.code === 'OBJECT_STORE_UNAVAILABLE' : isStoreTransient(thrown))
        if (!isWaiting) throw thrown
        state = 'waiting for the object store or the database'
        if (attempt === 1) log.warn({ err: thrown }, state)
        const pause = backoffPause(attempt, { first: 200, cap: 5_000 }, Math.random())
        metrics.blockedSeconds.inc({ stage: name }, pause / 1000)
        await sleep(pause, undefined, { signal })
      }
    }
  }

  const run = async (signal: AbortSignal): Promise<void> => {
    const files = new Map<string, OpenFile>()
    const positions = new Map<string, number>()
    const startAt = async (assigned: readonly { readonly topic: string; readonly partition: number }[]) => {
      files.clear()
      const { rows } = await pool.query<{ topic: string; partition: number; next: number }>(
        'select topic, partition, max(until_offset) as next from archive_files group by topic, partition',
      )
      const stored = new Map(rows.map(({ topic, partition, next }) => [`${topic} ${partition}`, next]))
      const kept = new Map((await tools.readBounds([...new Set(assigned.map(({ topic }) => topic))])).map(({ topic, partition, from }) => [`${topic} ${partition}`, from]))
      return assigned.map(({ topic, partition }) => {
        const [next, low] = [stored.get(`${topic} ${partition}`) ?? 0, kept.get(`${topic} ${partition}`) ?? 0]
        // no file says that it stands for them: whoever reads them is told that they are nowhere
        if (low > next) log.error({ topic, partition, from: next, until: low }, 'the broker has deleted records that were not archived')
        const offset = Math.max(next, low)
        files.set(`${topic} ${partition}`, emptyFile(offset))
        positions.set(`${topic} ${partition}`, offset)
        return { topic, partition, offset }
      })
    }
    const consumer = await tools.bus.connectConsumer({
      groupId: `frameloop.${name}`,
      instance: `frameloop.${name}.${tools.instance}`,
      topics: cataloguedTopics,
      gather: 1_000,
      log,
      startAt,
    })
    try {
      let lookedAt = 0
      const heardAt = new Map<string, EpochMs>()
      while (!signal.aborted) {
        const records = await consumer.poll({ lane: 'live', limit: batchLimit, patience: 200 })
        state = consumer.assigned.length > 0 ? state.replace(/^(starting|waiting for partitions)$/, '') : 'waiting for partitions'
        const { generation } = consumer
        for (const record of records) {
          const key = `${record.topic} ${record.partition}`
          const open = files.get(key)
          if (!open || record.offset < (positions.get(key) ?? 0)) continue
          metrics.received.inc({ stage: name })
          let kept = record
          await insist(async () => {
            kept = await withoutCopies(record, codec)
          }, signal)
          const { open: next, closed } = append(open, kept, every)
          if (closed) await insist(() => write(record.topic, record.partition, closed, signal), signal)
          if (consumer.generation !== generation) break
          files.set(key, next)
          positions.set(key, record.offset + 1)
          heardAt.set(key, Date.now())
        }
        if (Date.now() - lookedAt < 5_000) continue
        lookedAt = Date.now()
        for (const [topic, lag] of consumer.lag(positions)) metrics.lag.set({ stage: name, topic }, lag)
        for (const { topic, partition } of consumer.assigned) {
          const key = `${topic} ${partition}`
          const open = files.get(key)
          // others may never leave off: a partition of which nothing comes beside them has nothing more
          if (records.length > 0 && Date.now() - (heardAt.get(key) ?? 0) < quietTime) continue
          const end = consumer.endOf({ topic, partition })
          // more has come since, or nobody knows
          if (!open || end === undefined || (positions.get(key) ?? 0) > end) continue
          const over = closeByDay(open, Date.now()) ?? closeMarkers(open, end)
          if (!over) continue
          await insist(() => write(topic, partition, over, signal), signal)
          files.set(key, emptyFile(over.until))
          positions.set(key, Math.max(positions.get(key) ?? 0, over.until))
        }
      }
    } finally {
      await consumer.close()
    }
  }
  return { run, notReady: () => state || undefined }
}
