/** A network camera with a password that is killed and comes back; its pictures are those of real footage. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import type { AgentReported } from '@frameloop/schemas/events'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { afterAll, beforeAll, expect, test } from 'vitest'
import WebSocket from 'ws'
import { build, root } from '../src/home.ts'
import { parseZones, putZoneFile, readNamed } from '../src/label-file.ts'
import { freePort, type NetworkCamera, openNetworkCamera } from './network-camera.ts'
import { env, frameloop, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

const password = 'opensesame-1234'
const folder = mkdtempSync(join(tmpdir(), 'frameloop-rtsp-'))
const configFile = join(folder, 'agent.yaml')
const [privateKey, publicKey] = [join(folder, 'signing.pem'), join(folder, 'public.pem')]
let config: { readonly cameras: readonly object[]; readonly [setting: string]: unknown } = { cameras: [] }
let camera: NetworkCamera
let agent: ChildProcess | undefined
let agentEnded: Promise<unknown> = Promise.resolve()
let agentSaid = ''

beforeAll(async () => {
  camera = await openNetworkCamera(folder)
  await camera.start(password)
  await putZoneFile(state.endpoints['labels'] ?? '', 'gate', 'occupancy', parseZones(readNamed(join(root, 'deploy/e2e/footage/vtest-zones.json'))))
  writeFileSync(publicKey, (await promisify(execFile)(process.execPath, [join(build, 'agent.mjs'), 'make-key', privateKey])).stdout)
  const { endpoints } = state
  config = {
    ...{
      agent: 'agent-rtsp',
      signingKey: `\${file:${privateKey}}`,
      port: await freePort(),
      spool: { folder: join(folder, 'spool') },
      kafka: { brokers: [endpoints['kafka'] ?? ''] },
      registry: { url: endpoints['schemaRegistry'] ?? '' },
    },
    s3: { endpoint: endpoints['s3'] ?? '', accessKeyId: '${AWS_ACCESS_KEY_ID}', secretAccessKey: '${AWS_SECRET_ACCESS_KEY}' },
    cameras: [{ id: 'gate', address: camera.address, username: camera.username, password, framesPerSecond: 5, clips: { before: 4, onMotion: false } }],
  }
  writeFileSync(configFile, JSON.stringify(config))
  startAgent()
})

function startAgent(): void {
  agent = spawn(process.execPath, [join(build, 'agent.mjs'), 'run', '--config', configFile], {
    env: { ...process.env, ...state.environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  agentEnded = once(agent, 'exit')
  for (const stream of [agent.stdout, agent.stderr]) {
    stream?.on('data', (chunk: Buffer) => {
      agentSaid += chunk.toString('utf8')
    })
  }
}

async function restartAgent(): Promise<void> {
  agent?.kill('SIGTERM')
  await agentEnded
  startAgent()
}

afterAll(async () => {
  agent?.kill('SIGTERM')
  camera.signal('SIGKILL')
  await agentEnded
  rmSync(folder, { recursive: true, force: true })
  await pool.end()
})

const newestFrame = async (after: Date): Promise<Date | undefined> =>
  (await one<{ frame_at: Date }>("select frame_at from features where camera_id = 'gate' and frame_at > $1 order by frame_at desc limit 1", [after]))?.frame_at

test('frames arrive, stop with the camera, and arrive again after it was killed and started anew', async () => {
  const before = await soon(() => newestFrame(new Date(0)))
  expect(before).toBeInstanceOf(Date)
  camera.signal('SIGKILL')
  await soon(async () => one("select 1 as ok from captures where camera_id = 'gate' and state in ('backing off', 'connecting', 'stalled') limit 1"))
  const restarted = new Date()
  await camera.start(password)
  expect(await soon(() => newestFrame(restarted))).toBeInstanceOf(Date)
})

test('its answers are live on the feed', async () => {
  // the simulated street has trained a champion for this task by then
  const socket = new WebSocket(`${(state.endpoints['serve'] ?? '').replace('http', 'ws')}/v1/feeds`)
  const answer = await new Promise<Record<string, unknown>>((resolve, reject) => {
    socket.on('open', () => socket.send(JSON.stringify({ cameras: ['gate'] })))
    // until the wish is acknowledged everything comes
    let isSubscribed = false
    socket.on('message', (data: Buffer) => {
      const message = JSON.parse(data.toString('utf8')) as Record<string, unknown>
      if (message['kind'] === 'subscribed') isSubscribed = true
      else if (isSubscribed && message['kind'] === 'prediction') resolve(message)
    })
    socket.on('error', reject)
  })
  socket.close()
  expect(answer).toMatchObject({ cameraId: 'gate', task: 'occupancy' })
})

test('its password stands in no log and in no row', async () => {
  expect(agentSaid).toContain('camera state changed')
  expect(agentSaid).not.toContain(password)
  expect(await one("select 1 as found from media where camera_id = 'gate' and media::text like $1 limit 1", [`%${password}%`])).toBeUndefined()
  expect(await one('select 1 as found from captures where captures::text like $1 limit 1', [`%${password}%`])).toBeUndefined()
  expect(env('KAFKA_BROKERS')).not.toBe('')
})

test('a clip is recorded on command, begins before it, and goes the way of every medium', async () => {
  // as long as a clip begins before its event, and a camera needs to begin anew
  const since = Date.now()
  await soon(() => newestFrame(new Date(since + 6_000)))
  const asked = Date.now()
  const { stdout } = await promisify(execFile)(process.execPath, [join(build, 'agent.mjs'), 'record', 'gate', '--seconds', '2', '--config', configFile], {
    env: { ...process.env, ...state.environment },
  })
  const answered = Date.now()
  expect(stdout).toContain('a clip of gate is recorded')
  const clip = await soon(() =>
    one<{ media_id: string; captured_at: Date }>(
      `select media_id, captured_at from media m where camera_id = 'gate' and kind = 'clip' and status_rank = 4 and captured_at > $1
         and frame_count = (select count(*) from frames f where f.media_id = m.media_id)`,
      [new Date(asked - 10_000)],
    ),
  )
  expect(clip.captured_at.getTime()).toBeLessThan(answered - 1_500)
  const frames = await pool.query<{ frame_at: Date }>('select frame_at from frames where media_id = $1 order by frame_at', [clip.media_id])
  expect(frames.rows[0]?.frame_at).toEqual(clip.captured_at)
  expect(frames.rows.at(-1)?.frame_at.getTime()).toBeGreaterThan(asked)
})

const ffmpegsOf = (pid: number): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((child) => {
      try {
        return readFileSync(`/proc/${child}/stat`, 'utf8').split(') ').at(-1)?.split(' ')[1] === String(pid) && readFileSync(`/proc/${child}/cmdline`, 'utf8').startsWith('ffmpeg')
      } catch {
        return false
      }
    })

test('cameras are added and taken away in its file while it runs, and a wrong file has no effect', async () => {
  const [gate] = config.cameras
  const configure = (...cameras: object[]): void => writeFileSync(configFile, JSON.stringify({ ...config, cameras }))
  const streams = async (camera: string): Promise<true | undefined> =>
    (await one("select 1 as ok from captures where agent_id = 'agent-rtsp' and camera_id = $1 and state = 'streaming'", [camera])) && true
  configure(...config.cameras, { id: 'yard', address: 'simulator:?seed=3' })
  await soon(() => streams('yard'))
  configure({ ...gate, framesPerSecond: 'many' })
  await soon(async () => (agentSaid.includes('cameras[0].framesPerSecond is \\"many\\"') ? true : undefined))
  await soon(() => streams('gate'))
  configure(...config.cameras)
  await soon(async () => (agentSaid.includes('"stopped":["yard"]') ? true : undefined))
  await soon(async () => ((await streams('yard')) ? undefined : true))
})

test('settings wanted from afar run, survive a restart without the cloud asking again, and wrong ones are reported and have no effect', async () => {
  const wanted = join(folder, 'wanted.yaml')
  const want = (version: string, cameras: readonly object[]): Promise<string> => {
    writeFileSync(wanted, JSON.stringify({ cameras }))
    return frameloop('agents', 'set', 'agent-rtsp', wanted, '--name', version)
  }
  const reported = async (): Promise<AgentReported | undefined> =>
    (JSON.parse(await frameloop('agents', 'list', '--json')) as AgentReported[]).find(({ agentId }) => agentId === 'agent-rtsp')
  const runs = (version: string) => soon(async () => ((await reported())?.desiredVersion === version ? reported() : undefined))
  expect(await want('v1', [...config.cameras, { id: 'roof', address: 'simulator:?seed=4' }])).toContain('agent-rtsp is to run 2 cameras (v1)')
  expect((await runs('v1'))?.cameras.map(({ cameraId }) => cameraId)).toEqual(expect.arrayContaining(['gate', 'roof']))
  await want('v2', [{ id: 'roof', address: 'simulator:?seed=4', password: '${file:/nowhere}' }])
  const refused = await soon(async () => ((await reported())?.desiredError ? reported() : undefined))
  expect(refused).toMatchObject({ desiredVersion: 'v1' })
  expect(refused?.desiredError).toContain('cameras[0].password names a file that cannot be read')
  await expect(want('v3', [{ id: 'roof' }])).rejects.toThrow(/cameras\[0\]\.address is missing/)
  const [before, restartedAt] = [agentSaid.length, Date.now()]
  await restartAgent()
  await soon(async () => (/"started":\["gate","roof"\]/.test(agentSaid.slice(before)) ? true : undefined))
  // why the latest wish does not run is still said
  const again = await soon(async () => {
    const report = await reported()
    return report && report.reportedAt > restartedAt && report.desiredError ? report : undefined
  })
  expect(again).toMatchObject({ desiredVersion: 'v1', desiredError: refused?.desiredError })
})

test('a record in its name that it did not sign becomes a dead letter, and its own go through', async () => {
  await frameloop('agents', 'key', 'agent-rtsp', publicKey)
  const before = new Date()
  expect(await soon(() => newestFrame(before))).toBeInstanceOf(Date)
  const codec = openCodec(openRegistry(env('SCHEMA_REGISTRY_URL')))
  const { rows } = await pool.query<{ bucket: string; object_key: string; object_sha256: string; object_bytes: string; media_id: string; epoch: string }>(
    "select bucket, object_key, object_sha256, object_bytes, media_id, epoch from media where camera_id = 'gate' order by captured_at desc limit 1",
  )
  const [own] = rows
  const object = {
    bucket: own?.bucket ?? '',
    key: own?.object_key ?? '',
    sha256: own?.object_sha256 ?? '',
    bytes: Number(own?.object_bytes),
    versionId: '',
    contentType: 'image/jpeg',
  }
  const producer = openKafka(env('KAFKA_BROKERS'), 'test', openLog('test', 'error')).producer()
  await producer.connect()
  const sent: string[] = []
  const forge = async (): Promise<void> => {
    const mediaId = randomUUID()
    const forged = {
      ...{
        siteId: 'site-1',
        cameraId: 'gate',
        mediaId,
        epoch: own?.epoch ?? '',
        seq: 1_000_000 + sent.length,
        lane: 'live',
        source: 'camera',
        kind: 'image',
        agentId: 'agent-rtsp',
      },
      ...{ capturedAt: Date.now(), mediaOffsetUs: null, object, width: 0, height: 0, motion: null, sourceName: 'forged' },
    }
    const about = { key: 'gate', id: mediaId, time: forged.capturedAt, source: 'somebody', traceparent: '' }
    await producer.send({ topic: topics.mediaCaptured.name, acks: -1, messages: [await recordOf(codec, topics.mediaCaptured, forged, about)] })
    sent.push(mediaId)
  }
  // validate knows a new key after two seconds at most
  await soon(async () => {
    await forge()
    return one("select 1 as ok from dead_letters where reason = 'SIGNATURE_INVALID' and subject_id = any($1)", [sent])
  })
  await producer.disconnect()
  const later = new Date()
  expect(await soon(() => newestFrame(later))).toBeInstanceOf(Date)
})

test('killed with -9, its ffmpeg does not go on', async () => {
  const pid = agent?.pid ?? 0
  const children = await soon(async () => (ffmpegsOf(pid).length > 0 ? ffmpegsOf(pid) : undefined))
  agent?.kill('SIGKILL')
  await soon(async () => (children?.some((child) => existsSync(`/proc/${child}`)) ? undefined : true))
})
