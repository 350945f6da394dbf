/** A frame's way through the real stack, and what disturbs it. */
import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import { AvroDeserializer, AvroSerializer, SchemaRegistryClient, SerdeType } from '@confluentinc/schemaregistry'
import { openKafka, type Producer } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf, sha256Hex } from '@frameloop/kit/object-store'
import { openCodec } from '@frameloop/schemas/codec'
import { mediaIdOf } from '@frameloop/schemas/ids'
import { rawKey } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { root } from '../src/home.ts'
import type { Status } from '../src/status.ts'
import { env, frameloop, one, pool, soon, state, unaccounted } from './session.ts'

let producer: Producer
const store = objectStoreOf(state.environment)
const codec = openCodec(openRegistry(env('SCHEMA_REGISTRY_URL')))

beforeAll(async () => {
  producer = openKafka(env('KAFKA_BROKERS'), 'test', openLog('test', 'error')).producer()
  await producer.connect()
})
afterAll(async () => {
  await producer.disconnect()
  await pool.end()
  store.close()
})

const counter = { seq: 0 }
const capturedAt = new Map<string, number>()
/** A picture announced as an agent would, from the bytes given. */
async function announce(
  bytes: Buffer,
  changes: Readonly<Record<string, unknown>> = {},
  of: { readonly cameraId: string; readonly epoch: string; readonly seq: number } | undefined = undefined,
): Promise<string> {
  if (!of) counter.seq += 1
  const { cameraId, epoch, seq } = of ?? { cameraId: 'test-camera', epoch: 'f'.repeat(32), seq: counter.seq }
  const mediaId = mediaIdOf('test', cameraId, epoch, seq)
  const key = `raw/test/${mediaId}.jpg`
  await store.putOnce({ bucket: 'frameloop-raw', key, body: bytes, contentType: 'image/jpeg' })
  const object = { bucket: 'frameloop-raw', key, sha256: sha256Hex(bytes), bytes: bytes.length, versionId: '', contentType: 'image/jpeg', ...changes }
  const event = {
    siteId: 'test',
    cameraId,
    mediaId,
    epoch,
    seq,
    lane: 'live',
    source: 'camera',
    kind: 'image',
    agentId: 'test',
    capturedAt: capturedAt.get(mediaId) ?? Date.now(),
    mediaOffsetUs: null,
    object,
    width: 0,
    height: 0,
    motion: null,
    sourceName: '',
  }
  await producer.send({ topic: 'media.captured', messages: [{ key: cameraId, value: await codec.encode('media.captured', 'MediaCaptured', event) }] })
  capturedAt.set(mediaId, event.capturedAt)
  return mediaId
}
const stateOf = (mediaId: string, rank: number) =>
  soon(async () => one<{ status_rank: number; reason: string }>('select status_rank, reason from media where media_id = $1 and status_rank = $2', [mediaId, rank]))

test('a frame of the simulated camera goes all the way, and follow lists every step', async () => {
  const frame = await soon(async () => one<{ frame_id: string }>("select frame_id from features where camera_id = 'street' limit 1"))
  const way = await soon(async () => {
    const text = await frameloop('follow', frame.frame_id)
    return text.includes('media.captured') && text.includes('features.prepared') ? text : undefined
  })
  for (const step of ['media.captured', 'media.validated', 'frames.extracted', 'features.prepared'])
    expect(way).toMatch(new RegExp(`${step.replace('.', '\\.')} +partition \\d+ +offset \\d+`))
  expect(way).toContain('s3://frameloop-raw/raw/')
  expect(way).toContain('s3://frameloop-processed/processed/')
  expect(way).toContain('"sharpness"')
})

test('status tells what runs, with addresses that carry no password', async () => {
  const text = await frameloop('status', '--json')
  const status = JSON.parse(text) as Status
  expect(status.ready).toBe(true)
  expect(status.processes.map(({ name }) => name)).toEqual(
    expect.arrayContaining(['postgres', 'kafka', 'registry', 's3', 'mlflow', 'agent', 'validate', 'extract', 'features', 'catalog', 'labels', 'train', 'serve']),
  )
  expect(text).not.toContain(new URL(env('DATABASE_URL')).password)
  expect(status.endpoints['schemaRegistry']).toMatch(/\/apis\/ccompat\/v7$/)
})

test('the thin registry client and the Confluent client read each other', async () => {
  const client = new SchemaRegistryClient({ baseURLs: [env('SCHEMA_REGISTRY_URL')] })
  const loss = { siteId: 's', cameraId: 'c', epoch: 'e', seqFrom: 1, seqTo: 2, agentId: 'a', reason: 'evicted', lostAt: 5 }
  const theirs = new AvroSerializer(client, SerdeType.VALUE, { autoRegisterSchemas: false, useLatestVersion: true })
  expect(await codec.decode('MediaLost', await theirs.serialize('media.lost', loss))).toEqual(loss)
  const ours = await codec.encode('media.lost', 'MediaLost', loss)
  expect(await new AvroDeserializer(client, SerdeType.VALUE, {}).deserialize('media.lost', ours)).toMatchObject(loss)
})

test('an incompatible schema is refused by the registry', async () => {
  const registry = openRegistry(env('SCHEMA_REGISTRY_URL'))
  const broken = JSON.stringify({ type: 'record', name: 'MediaLost', namespace: 'dev.frameloop', fields: [{ name: 'siteId', type: 'long' }] })
  await expect(registry.register('media.lost-value', broken)).rejects.toMatchObject({ code: 'SCHEMA_INCOMPATIBLE' })
})

test('a text file named .jpg becomes a dead letter that says so, and the stage goes on', async () => {
  const mediaId = await announce(Buffer.from('this is no picture'))
  expect(await stateOf(mediaId, 3)).toMatchObject({ reason: 'PICTURE_UNREADABLE' })
  expect(await frameloop('follow', mediaId)).toContain('no JPEG, PNG or WebP')
  // kept where nothing reads it by itself
  expect((await store.get('frameloop-quarantine', `raw/test/${mediaId}.jpg`)).toString()).toBe('this is no picture')
})

test('dead letters are listed and shown, and one whose object came late gets through when it is sent again, once', async () => {
  const { object_key } = await soon(async () => one<{ object_key: string }>("select object_key from media where camera_id = 'street' limit 1"))
  const picture = await store.get('frameloop-raw', object_key)
  const late = 'raw/test/late.jpg'
  const mediaId = await announce(picture, { key: late })
  expect(await stateOf(mediaId, 3)).toMatchObject({ reason: 'OBJECT_MISSING' })
  const letter = await soon(async () => one<{ topic: string; partition: number; record_offset: number }>('select * from dead_letters where subject_id = $1', [mediaId]))
  const place = `${letter.topic}/${letter.partition}/${letter.record_offset}`
  expect(await frameloop('dead-letters', 'list', '--reason', 'OBJECT_MISSING')).toContain(`${place}  validate OBJECT_MISSING  camera test-camera`)
  const shown = await frameloop('dead-letters', 'show', place)
  expect(shown).toContain('fl-origin-topic: media.captured')
  expect(shown).toContain(`"mediaId": "${mediaId}"`)

  await store.putOnce({ bucket: 'frameloop-raw', key: late, body: picture, contentType: 'image/jpeg' })
  expect(await frameloop('dead-letters', 'redrive', '--reason', 'OBJECT_MISSING', '--dry-run')).toContain(`would send ${place} to media.captured`)
  expect(await frameloop('dead-letters', 'redrive', '--reason', 'OBJECT_MISSING')).toContain('1 sent, 0 left')
  await stateOf(mediaId, 4)
  expect(await frameloop('dead-letters', 'redrive', '--reason', 'OBJECT_MISSING')).toContain(`left ${place}: it got through meanwhile`)
})

test('the ledger is clean, and fails on a record that was announced and is nowhere', async () => {
  await soon(async () => frameloop('ledger').then((text) => (text.includes('Everything captured is accounted for.') ? true : undefined)))
  const epoch = 'e'.repeat(32)
  const camera = {
    cameraId: 'gap-camera',
    epoch,
    highestSeq: 3,
    forgottenSeq: 3,
    state: 'streaming',
    message: '',
    framesPerSecond: 1,
    lastFrameAt: Date.now(),
    sourceKind: 'folder',
  }
  const report = { agentId: 'gap-agent', siteId: 'test', version: 'test', reportedAt: Date.now(), spoolBytes: 0, spoolFrames: 0, spoolCapacityBytes: 1, cameras: [camera] }
  await producer.send({ topic: 'agents.reported', messages: [{ key: 'gap-agent', value: await codec.encode('agents.reported', 'AgentReported', report) }] })
  const picture = Buffer.from('any bytes')
  for (const seq of [1, 3]) await announce(picture, {}, { cameraId: 'gap-camera', epoch, seq })
  await soon(async () => one("select 1 as ok from media where camera_id = 'gap-camera' and seq = 3 and status_rank = 3"))
  await expect(frameloop('ledger', '--allow', '0')).rejects.toMatchObject({
    code: 1,
    stdout: expect.stringMatching(
      /gap-camera[\s\S]*captured 3 = validated 0 \+ rejected 2 \+ lost 0 \+ open 1[\s\S]*OVERDUE seq 2 waits for nothing: it was announced and never arrived/,
    ),
  })
  await pool.query("delete from captures where camera_id = 'gap-camera'")
})

test('a truncated JPEG becomes a dead letter that says so', async () => {
  const { object_key } = await soon(async () => one<{ object_key: string }>("select object_key from media where camera_id = 'street' limit 1"))
  const picture = await store.get('frameloop-raw', object_key)
  const mediaId = await announce(picture.subarray(0, picture.length >> 1))
  expect(await stateOf(mediaId, 3)).toMatchObject({ reason: 'PICTURE_UNREADABLE' })
})

test('content that is not what was announced is refused', async () => {
  const bytes = Buffer.from('some bytes')
  expect(await stateOf(await announce(bytes, { sha256: '0'.repeat(64) }), 3)).toMatchObject({ reason: 'DIGEST_MISMATCH' })
  expect(await stateOf(await announce(bytes, { bytes: 3 }), 3)).toMatchObject({ reason: 'SIZE_MISMATCH' })
})

test('a record of an unknown schema and a record that is no Avro become dead letters with their bytes unchanged', async () => {
  const unknown = Buffer.from([0, 0x7f, 0, 0, 1, 1, 2, 3])
  await producer.send({
    topic: 'media.captured',
    messages: [
      { key: 'rubbish', value: unknown },
      { key: 'rubbish', value: 'hello' },
    ],
  })
  const found = await soon(async () => {
    const { rows } = await pool.query<{ reason: string }>("select reason from dead_letters where camera_id = 'rubbish' order by record_offset")
    return rows.length === 2 ? rows : undefined
  })
  expect(found.map(({ reason }) => reason)).toEqual(['SCHEMA_UNKNOWN', 'RECORD_MALFORMED'])
})

test('an announcement that comes twice leaves one row and one record behind', async () => {
  const picture = await store.get(
    'frameloop-raw',
    (await soon(async () => one<{ object_key: string }>("select object_key from media where camera_id = 'street' limit 1"))).object_key,
  )
  const mediaId = await announce(picture)
  await stateOf(mediaId, 4)
  counter.seq -= 1
  expect(await announce(picture)).toBe(mediaId)
  await stateOf(await announce(picture), 4)
  const hops = await one<{ captured: number; validated: number }>(
    "select count(*) filter (where topic = 'media.captured') as captured, count(*) filter (where topic = 'media.validated') as validated from hops where subject_id = $1",
    [mediaId],
  )
  expect(hops).toEqual({ captured: 2, validated: 1 })
})

test('an object that was never announced is found by verify, announced again, and then all is clean', async () => {
  const { object_key } = await soon(async () => one<{ object_key: string }>("select object_key from media where camera_id = 'street' limit 1"))
  const picture = await store.get('frameloop-raw', object_key)
  const epoch = 'c'.repeat(32)
  const capturedAt = Date.UTC(2026, 0, 2, 3, 4, 5)
  const mediaId = mediaIdOf('lost-agent', 'lost-camera', epoch, 1)
  const key = rawKey({ siteId: 'site-1', cameraId: 'lost-camera', mediaId, capturedAt, extension: 'jpg' })
  const metadata = { 'media-id': mediaId, 'agent-id': 'lost-agent', 'site-id': 'site-1', 'camera-id': 'lost-camera', epoch, seq: '1', 'captured-at': String(capturedAt) }
  await store.putOnce({ bucket: 'frameloop-raw', key, body: picture, contentType: 'image/jpeg', metadata })
  const range = ['--from', '2026-01-02T03:00:00Z', '--to', '2026-01-02T04:00:00Z']
  await expect(frameloop('verify', ...range)).rejects.toMatchObject({ code: 1, stdout: expect.stringContaining(`orphan     s3://frameloop-raw/${key}: no row names it`) })
  await expect(frameloop('verify', ...range, '--repair')).rejects.toMatchObject({ stdout: expect.stringContaining('1 announced again') })
  await stateOf(mediaId, 4)
  await soon(async () => one('select 1 as ok from features f join frames using (frame_id) where media_id = $1', [mediaId]))
  expect(await frameloop('verify', ...range)).toMatch(/1 media and \d+ objects looked at: clean/)
})

test('a record that kills its process each time becomes a dead letter, and those around it are worked on', async () => {
  const loss = { siteId: 'test', cameraId: 'killer-camera', epoch: 'd'.repeat(32), seqFrom: 1, seqTo: 1, agentId: 'test', lostAt: Date.now() }
  for (const [at, reason] of ['fine', 'kill', 'fine'].entries()) {
    const value = await codec.encode('media.lost', 'MediaLost', { ...loss, seqFrom: at + 1, seqTo: at + 1, reason })
    await producer.send({ topic: 'media.lost', messages: [{ key: 'killer-camera', value }] })
  }
  const starts: number[] = []
  let child: ChildProcess | undefined
  let isOver = false
  const start = (): void => {
    starts.push(Date.now())
    child = spawn(process.execPath, ['--import', 'tsx', join(root, 'deploy/e2e/killer.ts')], { cwd: root, env: { ...process.env, ...state.environment }, stdio: 'ignore' })
    child.once('exit', () => {
      if (!isOver && starts.length < 15) start()
    })
  }
  start()
  try {
    const letter = await soon(
      async () => one<{ reason: string; record_offset: number }>("select reason, origin_offset as record_offset from dead_letters where camera_id = 'killer-camera'"),
      120_000,
    )
    expect(letter.reason).toBe('PROCESS_KILLED')
    // the third start where it began before works on one record at a time, and that record kills it three times
    expect(starts.length).toBe(6)
    const dead = await one<{ n: number }>("select count(*)::int as n from dead_letters where camera_id = 'killer-camera'")
    expect(dead).toEqual({ n: 1 })
  } finally {
    isOver = true
    child?.kill('SIGTERM')
  }
}, 150_000)

test.each(['validate', 'extract', 'features', 'catalog', 'agent', 'labels', 'train', 'serve', 's3', 'postgres', 'kafka'])(
  '%s is back within 15 s of a kill -9, and every frame captured is accounted for',
  async (name) => {
    const before = (JSON.parse(await frameloop('status', '--json')) as Status).processes.find((process) => process.name === name)
    if (!before) throw new Error(`${name} does not run`)
    process.kill(before.pid, 'SIGKILL')
    const since = Date.now()
    await soon(async () => {
      const found = await frameloop('status', '--json').then(
        (text) => JSON.parse(text) as Status,
        () => undefined,
      )
      const now = found?.processes.find((process) => process.name === name)
      return found?.ready && now && now.pid !== before.pid ? true : undefined
    }, 60_000)
    const mark = new Date(Date.now())
    const backAfter = (mark.getTime() - since) / 1000
    // frames captured after it came back arrive: the whole chain works again
    await soon(async () => one("select 1 as ok from features where camera_id = 'street' and frame_at > $1 limit 1", [mark]), 60_000)
    process.stdout.write(`${name}: ready again ${backAfter.toFixed(1)} s, frames flow again ${((Date.now() - since) / 1000).toFixed(1)} s after the kill\n`)
    expect(backAfter).toBeLessThanOrEqual(15)
    await soon(async () => ((await unaccounted(pool, 'street')) === 0 ? true : undefined), 60_000)
    expect(await one('select media_id from media group by camera_id, epoch, seq, media_id having count(*) > 1')).toBeUndefined()
    // the rows cannot be doubled by their keys; the records could: no stage has let one of them out twice
    expect(
      await one(
        "select h.topic, h.subject_id, count(*) from hops h join frames f on h.subject_id in (f.media_id, f.frame_id) where f.camera_id = 'street' and h.topic in ('media.validated', 'frames.extracted', 'features.prepared') group by h.topic, h.subject_id having count(*) > 1",
      ),
    ).toBeUndefined()
  },
)
