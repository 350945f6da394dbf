/** A past range again: from Kafka, from the archive, and prepared in another way. */

import { sha256Hex } from '@frameloop/kit/digest'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openCodec } from '@frameloop/schemas/codec'
import { bucketName, manifestKey, replayPrefix } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { decodeContainer } from '@frameloop/stream-processors/archive/container'
import { readRanges, readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { env, frameloop, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

const store = objectStoreOf(state.environment)
const codec = openCodec(openRegistry(env('SCHEMA_REGISTRY_URL')))
const admin = openKafka(env('KAFKA_BROKERS'), 'test', openLog('test', 'error')).admin()
const datasets = bucketName(env('BUCKET_PREFIX'), 'datasets')
const processed = bucketName(env('BUCKET_PREFIX'), 'processed')

beforeAll(() => admin.connect())
afterAll(async () => {
  await admin.disconnect()
  store.close()
  await pool.end()
})

interface Done {
  readonly id: string
  readonly into: string
  readonly records: number
  readonly digest: string
}
const replay = async (...args: string[]): Promise<Done> => JSON.parse(await frameloop('replay', '--cameras', 'street', '--json', ...args)) as Done

async function recordsOn(topic: string): Promise<BusRecord[]> {
  const records: BusRecord[] = []
  for await (const record of readTopic(env('KAFKA_BROKERS'), 'frameloop.test', topic, AbortSignal.timeout(180_000))) records.push(record)
  return records
}

async function filesUnder(bucket: string, prefix: string): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of store.list(bucket, prefix)) keys.push(key)
  return keys
}

/** Ten seconds of the street that have been prepared by now, and in which the machine was not too busy to paint it. */
const range = await soon(async () => {
  const row = await one<{ from: Date; to: Date }>(
    `select f.frame_at as from, f.frame_at + interval '10 seconds' as to from features f where camera_id = 'street' and frame_at < now() - interval '20 seconds'
       and (select count(*) from features n where n.camera_id = 'street' and n.frame_at >= f.frame_at and n.frame_at < f.frame_at + interval '10 seconds') > 30
     order by f.frame_at limit 1`,
  )
  return row ? { args: ['--from', row.from.toISOString(), '--to', row.to.toISOString()], ...row } : undefined
})

test('ten seconds are copied to a side topic, once each, and a second time under the same digest', async () => {
  const first = await replay(...range.args)
  const { n } = (await one<{ n: number }>(
    "select count(*)::int as n from features p join hops h on h.topic = 'features.prepared' and h.partition = p.partition and h.record_offset = p.record_offset where camera_id = 'street' and frame_at >= $1 and frame_at < $2",
    [range.from, range.to],
  )) ?? { n: 0 }
  expect(n).toBeGreaterThan(30)
  expect(first.records).toBe(n)
  const copies = await recordsOn(first.into)
  expect(new Set(copies.map(({ headers }) => `${headers['fl-origin-partition']} ${headers['fl-origin-offset']}`)).size).toBe(n)
  for (const { headers, value } of copies) {
    expect(headers).toMatchObject({ 'fl-replay-id': first.id, 'fl-effects': 'none', 'fl-origin-topic': 'features.prepared' })
    expect((await codec.decode('FeaturesPrepared', value)).cameraId).toBe('street')
  }
  const second = await replay(...range.args)
  expect(second.digest).toBe(first.digest)
  const manifest = JSON.parse((await store.get(datasets, manifestKey(first.digest))).toString()) as { digest: string; read: { records: number }[] }
  expect(manifest.digest).toBe(first.digest)
  expect(manifest.read.reduce((sum, { records }) => sum + records, 0)).toBe(n)
  expect(await frameloop('replay', 'list')).toContain(`${first.id}  done     ${first.into}`)
  for (const { id } of [first, second]) expect(await frameloop('replay', 'remove', id)).toContain(`replay ${id} is removed`)
  await soon(async () => ((await admin.listTopics()).includes(first.into) ? undefined : true))
})

test('the past is prepared in another way, beside the live chain and without a trace in it', async () => {
  const made = await replay(...range.args, '--preprocessing', '24x24,gray,equalise', '--task', 'occupancy')
  const preprocessing = { width: 24, height: 24, colour: 'gray', filters: ['equalise'] } as const
  expect(made.records).toBeGreaterThan(30)
  const [copy] = await recordsOn(made.into)
  const event = await codec.decode('FeaturesPrepared', copy?.value ?? Buffer.alloc(0))
  expect(event.preprocessing).toBe(preprocessingDigest(preprocessing))
  expect(event.zones[0]).toMatchObject({ shape: [24, 24, 1], tasks: ['occupancy'] })
  expect(sha256Hex(event.pixels ?? Buffer.alloc(0))).toBe(event.object.sha256)
  expect(event.object.key).toBe('')
  expect(await filesUnder(processed, replayPrefix(made.id))).toEqual([])
  expect(await one('select 1 as ok from features where preprocessing = $1', [event.preprocessing])).toBeUndefined()
  expect(await frameloop('replay', 'remove', made.id)).toBe(`replay ${made.id} is removed\n`)
})

test('pixels too large for a record are objects of the replay, and go with it', async () => {
  const made = await replay(...range.args, '--preprocessing', '200x200', '--task', 'occupancy')
  const [copy] = await recordsOn(made.into)
  const event = await codec.decode('FeaturesPrepared', copy?.value ?? Buffer.alloc(0))
  expect(event.pixels).toBeNull()
  expect(sha256Hex(await store.get(event.object.bucket, event.object.key))).toBe(event.object.sha256)
  expect(await filesUnder(processed, replayPrefix(made.id))).toHaveLength(made.records)
  expect(await frameloop('replay', 'remove', made.id)).toContain(`${made.records} objects with it`)
  expect(await filesUnder(processed, replayPrefix(made.id))).toEqual([])
})

test('what Kafka has deleted comes from the archive, each offset once, under the same digest', async () => {
  const topic = 'frames.extracted'
  const whole = await replay(...range.args, '--topic', topic)
  // the archive has passed the range, then Kafka forgets its first half
  const places = await soon(async () => {
    const { rows } = await pool.query<{ partition: number; middle: number; archived: number }>(
      `select h.partition, (min(h.record_offset) + max(h.record_offset)) / 2 as middle, (select max(until_offset) from archive_files a where a.topic = $1 and a.partition = h.partition) as archived
       from hops h join frames f on f.frame_id = h.subject_id where h.topic = $1 and f.camera_id = 'street' and f.frame_at >= $2 and f.frame_at < $3 group by h.partition`,
      [topic, range.from, range.to],
    )
    return rows.length > 0 && rows.every(({ middle, archived }) => Number(archived) >= Number(middle)) ? rows : undefined
  }, 120_000)
  await admin.deleteTopicRecords({ topic, partitions: places.map(({ partition, middle }) => ({ partition, offset: String(middle) })) })
  const kept = new Map((await admin.fetchTopicOffsets(topic)).map(({ partition, low }) => [partition, Number(low)]))
  for (const { partition, middle } of places) {
    expect(kept.get(partition)).toBe(Number(middle))
    // a reader that asks for what is gone is told so, never handed what comes after it
    const asked = readRanges(env('KAFKA_BROKERS'), 'frameloop.test', [{ topic, partition, from: Number(middle) - 1, until: Number(middle) + 1 }], AbortSignal.timeout(180_000))
    await expect(asked.next()).rejects.toThrow()
  }
  const again = await replay(...range.args, '--topic', topic)
  expect(again).toMatchObject({ records: whole.records, digest: whole.digest })
  const values = async (into: string): Promise<string[]> =>
    (await recordsOn(into)).map(({ headers, value }) => `${headers['fl-origin-partition']}/${headers['fl-origin-offset']} ${value.toString('hex')}`).sort()
  expect(await values(again.into)).toEqual(await values(whole.into))
  for (const { id } of [whole, again]) await frameloop('replay', 'remove', id)
})

test('every file of the archive is what its row says, and files follow each other without a gap', async () => {
  const { rows } = await pool.query<{
    topic: string
    partition: number
    from_offset: number
    until_offset: number
    bucket: string
    object_key: string
    sha256: string
    records: number
  }>('select * from archive_files order by topic, partition, from_offset')
  expect(rows.length).toBeGreaterThan(0)
  const ends = new Map<string, number>()
  for (const row of rows) {
    const place = `${row.topic} ${row.partition}`
    expect(Number(row.from_offset)).toBe(ends.get(place) ?? 0)
    ends.set(place, Number(row.until_offset))
    // nothing but markers
    if (row.records === 0) continue
    const bytes = await store.get(row.bucket, row.object_key)
    expect(sha256Hex(bytes)).toBe(row.sha256)
    const records = await decodeContainer({ topic: row.topic, partition: row.partition, from: Number(row.from_offset) }, bytes)
    expect(records).toHaveLength(row.records)
    if (row.topic === 'features.prepared') expect((await codec.decode('FeaturesPrepared', records[0]?.value ?? Buffer.alloc(0))).pixels).toBeNull()
  }
})

test('a replay that was interrupted goes on where it was, nothing twice', async () => {
  const { execFile } = await import('node:child_process')
  const { root } = await import('../src/home.ts')
  // ten seconds at half of real time take twenty
  const child = execFile(process.execPath, [`${root}/deploy/bin/frameloop.mjs`, 'replay', '--cameras', 'street', ...range.args, '--speed', '0.5', '--into', 'halves'], {
    env: { ...process.env, FRAMELOOP_HOME: (await import('./session.ts')).home },
  })
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve))
  let said = ''
  child.stdout?.on('data', (chunk: Buffer) => {
    said += chunk.toString()
  })
  const into = 'features.prepared.replay.halves'
  await soon(async () => ((await admin.listTopics()).includes(into) && (await recordsOn(into)).length > 5 ? true : undefined))
  child.kill('SIGINT')
  expect(await ended).toBe(1)
  const id = /--resume ([0-9a-f]{8})/.exec(said)?.[1] ?? ''
  const before = (await recordsOn(into)).length
  const rest = JSON.parse(await frameloop('replay', '--resume', id, '--json')) as Done
  expect(rest.records).toBeGreaterThan(before)
  const copies = await recordsOn(into)
  expect(copies).toHaveLength(rest.records)
  expect(new Set(copies.map(({ headers }) => `${headers['fl-origin-partition']} ${headers['fl-origin-offset']}`)).size).toBe(rest.records)
  await frameloop('replay', 'remove', id)
})

test('a copy of a replay on a live topic is refused and has no effect', async () => {
  const row = await soon(async () =>
    one<{ partition: number; record_offset: number; media_id: string }>(
      "select h.partition, h.record_offset, m.media_id from hops h join media m on m.media_id = h.subject_id where h.topic = 'media.captured' and m.camera_id = 'street' and m.status_rank = 4 limit 1",
    ),
  )
  const [original] = (await recordsOn('media.captured')).filter(({ partition, offset }) => partition === row.partition && offset === Number(row.record_offset))
  if (!original) throw new Error('the record is gone')
  const producer = openKafka(env('KAFKA_BROKERS'), 'test', openLog('test', 'error')).producer()
  await producer.connect()
  await producer.send({
    topic: 'media.captured',
    messages: [{ key: original.key, value: original.value, headers: { ...original.headers, 'fl-effects': 'none', 'fl-replay-id': 'abc' } }],
  })
  await producer.disconnect()
  await soon(async () => one("select 1 as ok from dead_letters where reason = 'REPLAYED'"))
  expect(await one('select status_rank from media where media_id = $1', [row.media_id])).toEqual({ status_rank: 4 })
  expect(await frameloop('dead-letters', 'redrive', '--reason', 'REPLAYED')).toContain('it is a copy made by a replay')
})

test('what cannot be replayed is said', async () => {
  await expect(frameloop('replay', '--from', 'yesterday')).rejects.toThrow(/--from yesterday is no time/)
  await expect(frameloop('replay', ...range.args, '--topic', 'models.changed')).rejects.toThrow(/models.changed cannot be replayed; topics that can: media.captured/)
  await expect(frameloop('replay', '--from', '2001-01-01T00:00:00Z', '--to', '2001-01-02T00:00:00Z')).rejects.toThrow(/Nothing of features.prepared lies between/)
  await expect(frameloop('replay', '--resume', 'nothing')).rejects.toThrow(/There is no replay nothing/)
})

test('the catalog rebuilt from the archive and the topics has equal rows, and rows that were lost come back', async () => {
  // what is younger than two minutes is not compared: it may be on its way
  await soon(async () => one("select 1 as ok from media where camera_id = 'street' and captured_at < now() - interval '130 seconds'"), 400_000)
  const compared = await frameloop('catalog', 'rebuild', '--check')
  expect(compared).toMatch(
    /^\d+ records read\nmedia +[1-9]\d* rows rebuilt, equal\nframes +[1-9]\d* rows rebuilt, equal\nfeatures +\d+ rows rebuilt, equal\npredictions +\d+ rows rebuilt, equal\nhops +\d+ rows rebuilt, equal/,
  )
  const { rows } = await pool.query<{ media_id: string; camera_id: string; seq: number; object_key: string; parameters: object }>(
    "delete from media where media_id in (select media_id from media where camera_id = 'street' and captured_at < now() - interval '2 minutes' and status_rank = 4 order by captured_at limit 5) returning media_id, camera_id, seq, object_key, parameters",
  )
  expect(rows).toHaveLength(5)
  await expect(frameloop('catalog', 'rebuild', '--check')).rejects.toMatchObject({ code: 1, stdout: expect.stringMatching(/media +\d+ rows rebuilt, 5 missing/) })
  await frameloop('catalog', 'rebuild')
  for (const { media_id, ...columns } of rows) expect(await one('select camera_id, seq, object_key, parameters from media where media_id = $1', [media_id])).toEqual(columns)
})
