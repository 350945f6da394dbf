/**
 * `frameloop verify`: object store, topics and rows against each other.
 *
 *   missing     a row names an object that is not there, or one of another size
 *   duplicate   a frame came out of a stage twice, or was answered twice by one model
 *   orphan      an object that no row names: announced and lost by a broker, never announced, or left by a batch that was given up
 *   unrecorded  a row that no record of a topic stands behind
 *   unwritten   a record of a topic that the catalog has passed and that no row stands for
 *   unread      the catalog is behind
 *
 * Y1  What may still be on its way is no finding: objects stored in the last minutes are left out, however long ago they were
 *     captured, and so is what the catalog has not read yet. While it is behind, no object is called an orphan: its row
 *     may be among what is to come, and `--repair` would remove it.
 */
import { Fault } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { type BucketRole, bucketName, isCheckKey, replayPrefix } from '@frameloop/schemas/object-keys'
import { consumedTopics, deadLetterTopic, topics } from '@frameloop/schemas/topics'
import { planReadings, readHistory } from '@frameloop/stream-processors/archive/history'
import { selectOffsets } from '@frameloop/stream-processors/catalog/sql'
import type { Position } from '@frameloop/stream-processors/chain/bus'
import type { Range } from '@frameloop/stream-processors/chain/kafka-bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { isCatalogBehind } from './catalog-lag.ts'

export interface Finding {
  readonly kind: 'missing' | 'duplicate' | 'orphan' | 'unrecorded' | 'unwritten' | 'unread'
  readonly what: string
  readonly detail: string
  /** Of an orphan. */
  readonly object?: { readonly role: 'raw' | 'processed'; readonly key: string; readonly modifiedAt: EpochMs }
  /** Of what is unwritten. */
  readonly record?: Position
}

export interface Verified {
  readonly media: number
  readonly objects: number
  readonly records: number
  readonly findings: readonly Finding[]
}

export interface VerifyTools {
  readonly pool: Pool
  readonly store: ObjectStore
  readonly bucketPrefix: string
  readonly brokers: string
  /** What is younger may still be on its way (Y1). */
  readonly settle: Ms
  readonly say: (text: string) => void
}

export const settleTime: Ms = 120_000

interface NamedObject {
  readonly key: string
  readonly bytes: number | null
  readonly owner: string
}

/** Objects that rows name, by key. */
async function namedObjects(pool: Pool, role: BucketRole, from: Date, to: Date): Promise<Map<string, NamedObject>> {
  const text =
    role === 'raw'
      ? "select object_key as key, object_bytes as bytes, 'media ' || media_id as owner from media where object_key <> '' and captured_at >= $1 and captured_at < $2"
      : `select object_key as key, null::bigint as bytes, 'features of frame ' || frame_id as owner from features where frame_at >= $1 and frame_at < $2
         union all select object_key, null, 'frame ' || frame_id from frames where object_key like 'frames/%' and frame_at >= $1 and frame_at < $2`
  const { rows } = await pool.query<NamedObject>(text, [from, to])
  return new Map(rows.map((row) => [row.key, row]))
}

/** The hour that stands in a key, or undefined. */
function hourOf(key: string): EpochMs | undefined {
  const found = /\/(\d{4})\/(\d\d)\/(\d\d)\/(\d\d)\//.exec(key)
  return found ? Date.UTC(Number(found[1]), Number(found[2]) - 1, Number(found[3]), Number(found[4])) : undefined
}

/** Those of the keys that no row names. */
export async function unnamed(pool: Pool, role: BucketRole, keys: readonly string[]): Promise<string[]> {
  const tables = role === 'raw' ? ['media'] : ['features', 'frames']
  const known = new Set<string>()
  for (const table of tables) {
    const { rows } = await pool.query<{ object_key: string }>(`select object_key from ${table} where object_key = any($1)`, [keys])
    for (const { object_key } of rows) known.add(object_key)
  }
  return keys.filter((key) => !known.has(key))
}

/** `isBehind`: the catalog is (Y1). */
async function checkObjects(
  role: 'raw' | 'processed',
  from: Date,
  to: Date,
  isBehind: boolean,
  tools: VerifyTools,
): Promise<{ readonly objects: number; readonly findings: Finding[] }> {
  const { pool, store, say } = tools
  const bucket = bucketName(tools.bucketPrefix, role)
  const named = await namedObjects(pool, role, from, to)
  // what a replay has prepared goes when it is removed
  const replays = await pool.query<{ replay_id: string }>("select replay_id from replays where state <> 'removed'")
  const ofReplays = replays.rows.map(({ replay_id }) => replayPrefix(replay_id))
  const findings: Finding[] = []
  let objects = 0
  const strangers = new Map<string, EpochMs>()
  const askAbout = async (): Promise<void> => {
    for (const key of await unnamed(pool, role, [...strangers.keys()]))
      findings.push({ kind: 'orphan', what: `s3://${bucket}/${key}`, detail: 'no row names it', object: { role, key, modifiedAt: strangers.get(key) ?? Date.now() } })
    strangers.clear()
  }
  for await (const { key, bytes, modifiedAt } of store.list(bucket, '')) {
    objects += 1
    if (objects % 50_000 === 0) say(`${bucket}: ${objects} objects …`)
    const owner = named.get(key)
    if (owner) {
      named.delete(key)
      if (owner.bytes !== null && owner.bytes !== bytes)
        findings.push({ kind: 'missing', what: `s3://${bucket}/${key}`, detail: `it holds ${bytes} bytes, ${owner.owner} says ${owner.bytes}` })
      continue
    }
    // the key says when it was captured, to the hour; one that does not is as old as its object
    const hour = hourOf(key)
    if ((hour === undefined ? modifiedAt : hour + 3_600_000 - 1) < from.getTime() || (hour ?? modifiedAt) >= to.getTime()) continue
    // it may have been stored a moment ago, by an agent that catches up say, and its row is on its way
    const isYoung = Date.now() - modifiedAt < tools.settle
    if (isBehind || isYoung || isCheckKey(key) || ofReplays.some((prefix) => key.startsWith(prefix))) continue
    strangers.set(key, modifiedAt)
    if (strangers.size >= 1_000) await askAbout()
  }
  await askAbout()
  for (const { key, owner } of named.values()) findings.push({ kind: 'missing', what: `s3://${bucket}/${key}`, detail: `${owner} names it and it is not there` })
  return { objects, findings }
}

/** SQL: how often what the hop `h` is about was sent again on these topics, where it lies once more each time, as it should. */
const sentAgain = (topicNames: string): string =>
  `(select count(*) from redrives r join dead_letters d using (topic, partition, record_offset) where d.subject_id = h.subject_id and d.origin_topic in (${topicNames}))`
const [prepared, extracted, validated] = ["'features.prepared'", "'frames.extracted', 'frames.extracted.backfill'", "'media.validated', 'media.validated.backfill'"]

async function checkRows(pool: Pool, from: Date, to: Date): Promise<Finding[]> {
  const { rows } = await pool.query<{ kind: Finding['kind']; what: string; detail: string }>(
    `select 'duplicate' as kind, 'frame ' || subject_id as what, count(*) || ' records on features.prepared for ' || max(f.n) || ' preprocessings' as detail
       from hops h join (select frame_id, count(*) as n from features where frame_at >= $1 and frame_at < $2 group by frame_id) f on f.frame_id = h.subject_id
       where h.topic = ${prepared} group by h.subject_id having count(*) > max(f.n) + ${sentAgain(prepared)}
     union all
     select 'duplicate', 'frame ' || subject_id, count(*) || ' records of the frame extracted'
       from hops h join frames f on f.frame_id = h.subject_id where h.topic in (${extracted}) and f.frame_at >= $1 and f.frame_at < $2 group by h.subject_id having count(*) > 1 + ${sentAgain(extracted)}
     union all
     select 'duplicate', 'media ' || subject_id, count(*) || ' records of the medium validated'
       from hops h join media m on m.media_id = h.subject_id where h.topic in (${validated}) and m.captured_at >= $1 and m.captured_at < $2 group by h.subject_id having count(*) > 1 + ${sentAgain(validated)}
     union all
     select 'duplicate', 'frame ' || subject_id, count(*) || ' records on predictions.made for ' || max(p.n) || ' answers'
       from hops h join (select frame_id, count(*) as n from predictions where frame_at >= $1 and frame_at < $2 group by frame_id) p on p.frame_id = h.subject_id
       where h.topic = 'predictions.made' group by subject_id having count(*) > max(p.n)
     union all
     select 'unrecorded', 'media ' || m.media_id, 'camera ' || camera_id || ' seq ' || seq || ': no record of any topic stands behind it'
       from media m where m.captured_at >= $1 and m.captured_at < $2 and not exists (select 1 from hops h where h.subject_id = m.media_id)
     union all
     select 'unrecorded', 'features of frame ' || f.frame_id, 'no record of features.prepared stands behind it'
       from features f where f.frame_at >= $1 and f.frame_at < $2 and not exists (select 1 from hops h where h.subject_id = f.frame_id and h.topic = 'features.prepared')`,
    [from, to],
  )
  return rows
}

/** Topics whose records the catalog turns into rows of their own. */
const writtenTopics: readonly string[] = [
  topics.mediaCaptured,
  topics.mediaBackfill,
  topics.mediaValidated,
  topics.mediaValidatedBackfill,
  topics.framesExtracted,
  topics.framesExtractedBackfill,
  topics.featuresPrepared,
  topics.predictionsMade,
]
  .map(({ name }) => name)
  .concat(consumedTopics.map(({ name }) => deadLetterTopic(name)))

/** What was appended in [from, to), as far as the catalog has read; older than Kafka keeps, as far as rows know of it. */
async function offsetsBetween(from: Date, to: Date, { pool, brokers }: VerifyTools): Promise<Range[]> {
  const read = await selectOffsets(pool)
  const { rows } = await pool.query<{ topic: string; partition: number; least: number }>(
    'select topic, partition, min(record_offset) as least from hops where at >= $1 and at < $2 group by topic, partition',
    [from, to],
  )
  const known = new Map(rows.map(({ topic, partition, least }) => [`${topic} ${partition}`, least]))
  const admin = openKafka(brokers, 'verify', openLog('verify', 'error')).admin()
  await admin.connect()
  try {
    const ranges: Range[] = []
    for (const topic of writtenTopics) {
      const [starts, ends] = await Promise.all([admin.fetchTopicOffsetsByTimestamp(topic, from.getTime()), admin.fetchTopicOffsetsByTimestamp(topic, to.getTime())])
      for (const { partition, offset } of starts) {
        const place = `${topic} ${partition}`
        const end = Number(ends.find((one) => one.partition === partition)?.offset ?? 0)
        ranges.push({ topic, partition, from: Math.min(Number(offset), known.get(place) ?? Number(offset)), until: Math.min(end, read.get(place) ?? 0) })
      }
    }
    return ranges.filter((range) => range.from < range.until)
  } finally {
    await admin.disconnect()
  }
}

/** Those of the records that no row stands for: neither the row their topic fills nor a dead letter. */
async function unwritten(pool: Pool, records: readonly BusRecord[]): Promise<Position[]> {
  const { rows } = await pool.query<{ topic: string; partition: number; offset: number }>(
    `select r.topic, r.partition, r.record_offset as "offset"
     from unnest($1::text[], $2::int[], $3::bigint[], $4::timestamptz[]) as r(topic, partition, record_offset, at)
     left join hops h on h.topic = r.topic and h.partition = r.partition and h.record_offset = r.record_offset and h.at = r.at
     where not case
       when r.topic like '%.dead-letters' then exists (select 1 from dead_letters d where d.topic = r.topic and d.partition = r.partition and d.record_offset = r.record_offset)
       when h.subject_id is null then exists (select 1 from dead_letters d where d.origin_topic = r.topic and d.origin_partition = r.partition and d.origin_offset = r.record_offset)
       when r.topic in ('frames.extracted', 'frames.extracted.backfill') then exists (select 1 from frames f where f.frame_id = h.subject_id)
       when r.topic = 'features.prepared' then exists (select 1 from features f where f.frame_id = h.subject_id and f.topic = r.topic and f.partition = r.partition and f.record_offset = r.record_offset)
       when r.topic = 'predictions.made' then exists (select 1 from predictions p where p.frame_id = h.subject_id)
       else exists (select 1 from media m where m.media_id = h.subject_id)
     end`,
    [records.map(({ topic }) => topic), records.map(({ partition }) => partition), records.map(({ offset }) => offset), records.map(({ timestamp }) => new Date(timestamp))],
  )
  return rows
}

async function checkTopics(from: Date, to: Date, tools: VerifyTools): Promise<{ readonly records: number; readonly findings: Finding[] }> {
  const { pool, store, brokers, say } = tools
  const history = { brokers, sql: pool, store }
  const findings: Finding[] = []
  let records = 0
  let batch: BusRecord[] = []
  const askAbout = async (): Promise<void> => {
    for (const record of await unwritten(pool, batch))
      findings.push({ kind: 'unwritten', what: `${record.topic}/${record.partition}/${record.offset}`, detail: 'no row stands for it', record })
    batch = []
  }
  for await (const record of readHistory(await planReadings(await offsetsBetween(from, to, tools), history), history, 'frameloop.verify', new AbortController().signal)) {
    records += 1
    if (records % 100_000 === 0) say(`topics: ${records} records …`)
    // a copy of a replay has no rows
    if (record.headers['fl-effects'] === 'none') continue
    batch.push({ ...record, value: Buffer.alloc(0) })
    if (batch.length >= 2_000) await askAbout()
  }
  await askAbout()
  return { records, findings }
}

/** Everything captured in [from, to), and every record appended then. */
export async function verify(from: Date, to: Date, tools: VerifyTools): Promise<Verified> {
  if (from >= to) throw new Fault('REQUEST_INVALID', `The range ends before it begins: ${from.toISOString()} to ${to.toISOString()}`)
  const isBehind = await isCatalogBehind(writtenTopics, tools, new AbortController().signal)
  const raw = await checkObjects('raw', from, to, isBehind, tools)
  const processed = await checkObjects('processed', from, to, isBehind, tools)
  const rows = await checkRows(tools.pool, from, to)
  const topic = await checkTopics(from, to, tools)
  const counted = await tools.pool.query<{ n: number }>('select count(*)::int as n from media where captured_at >= $1 and captured_at < $2', [from, to])
  return {
    media: counted.rows[0]?.n ?? 0,
    objects: raw.objects + processed.objects,
    records: topic.records,
    findings: [
      ...(isBehind ? [{ kind: 'unread', what: 'the catalog', detail: 'it is behind the topics, so objects without a row are not judged' } as const] : []),
      ...[...raw.findings, ...processed.findings, ...rows, ...topic.findings],
    ],
  }
}

export function showVerified({ media, objects, records, findings }: Verified): string {
  const counts = (['missing', 'duplicate', 'orphan', 'unrecorded', 'unwritten', 'unread'] as const).map(
    (kind) => `${findings.filter((finding) => finding.kind === kind).length} ${kind}`,
  )
  return [
    ...findings.slice(0, 50).map(({ kind, what, detail }) => `${kind.padEnd(10)} ${what}: ${detail}`),
    ...(findings.length > 50 ? [`… and ${findings.length - 50} more`] : []),
    `${media} media, ${objects} objects and ${records} records looked at: ${findings.length === 0 ? 'clean' : counts.join(', ')}`,
  ].join('\n')
}
