/**
 * Inference from inside: batches that are learned against the best fixed one, the live stage against the engine alone on the
 * same tensors, and what one reader that takes nothing costs the others.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { WebSocket } from 'ws'
import { freePort } from '../../deploy/e2e/network-camera.ts'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { bundle } from '../../deploy/setup/build.mjs'
import { build } from '../../deploy/src/home.ts'
import { stageFlags } from '../../deploy/src/up.ts'
import { aWay } from './events.ts'
import { median } from './measure.ts'
import type { PredictJob } from './predict-runner.ts'
import { type BatchingFound, type FeedsFound, type LiveFound, liveTopics, type ServeJob } from './serve-jobs.ts'

const rounds = 3
const sides = [64, 224] as const
const frames = 4_000
const cameras = 64
const zonesPerFrame = 4
const readers = 200
const feedSeconds = 20

const runner = join(build, 'bench/serve-runner.mjs')
const started = (job: ServeJob): ChildProcess => fork(runner, [JSON.stringify(job)], { execArgv: [...stageFlags] })

async function asked<Found>(job: ServeJob): Promise<Found> {
  const child = started(job)
  const [found] = (await Promise.race([
    once(child, 'message'),
    once(child, 'exit').then(([code]) => {
      throw new Error(`the runner of ${job.kind} ended with ${code}`)
    }),
  ])) as [Found]
  return found
}

async function writeModel(folder: string, side: number): Promise<void> {
  const crop = (seed: number): string => Buffer.from(new Uint8Array(side * side * 3).map((_, at) => (at * (seed + 3) + (at >> 6)) % 256)).toString('base64')
  const writing = spawn(process.execPath, [join(build, 'bench/predict-runner.mjs'), '-'], { stdio: ['pipe', 'ignore', 'inherit'] })
  writing.stdin.end(JSON.stringify({ folder, side, write: Array.from({ length: 8 }, (_, seed) => crop(seed)) } satisfies PredictJob))
  const [code] = (await once(writing, 'exit')) as [number]
  if (code !== 0) throw new Error(`the model of ${side}x${side} was not written`)
}

async function benchBatching(folder: string, say: (text: string) => void): Promise<object> {
  const results: Record<string, object> = {}
  for (const side of sides) {
    const found = await asked<BatchingFound>({ kind: 'batching', folder: join(folder, String(side)), seconds: 1.5 })
    const [best, most] = Object.entries(found.fixed).sort(([, a], [, b]) => b - a)[0] ?? ['', 0]
    const [ratio, light] = [found.adaptive / most, found.light.p95 / found.light.p95Alone]
    say(
      `${side}x${side}: learned batches ${Math.round(found.adaptive)}/s, the best fixed one (${best}) ${Math.round(most)}/s: ${ratio.toFixed(2)} x; at a tenth of it p95 ${found.light.p95.toFixed(2)} ms, one at a time ${found.light.p95Alone.toFixed(2)} ms: ${light.toFixed(2)} x`,
    )
    results[`${side}x${side}`] = { ...found, best, ratio, light: { ...found.light, ratio: light } }
  }
  return results
}

async function benchLive(folder: string, say: (text: string) => void): Promise<object> {
  await using home = openOwnHome()
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const kafka = openKafka(env['KAFKA_BROKERS'] ?? '', 'bench', openLog('bench', 'error'))
  const [producer, admin] = [kafka.producer(), kafka.admin()]
  try {
    await Promise.all([producer.connect(), admin.connect()])
    // topics beside the chain: its own processes would work on the same cores
    await createTopics(admin, [
      { topic: liveTopics.input, numPartitions: 6 },
      { topic: liveTopics.output, numPartitions: 6 },
    ])
    const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
    const size = 64 * 64 * 3
    const pixels = Buffer.from(new Uint8Array(zonesPerFrame * size).map((_, at) => (at * 31) % 256))
    const recordAt = (seq: number) => {
      const { FeaturesPrepared: prepared } = aWay(seq)
      const [zone] = prepared.zones
      const zones = Array.from({ length: zonesPerFrame }, (_, of) => ({ ...(zone as NonNullable<typeof zone>), zone: `zone-${of}`, tasks: ['bench'], offset: of * size }))
      const event = { ...prepared, cameraId: `camera-${seq % cameras}`, preprocessing: '', reference: null, zones, pixels }
      return recordOf(codec, topics.featuresPrepared, event, { key: event.cameraId, id: event.frameId, time: event.frameAt, source: 'bench', traceparent: newTraceparent() })
    }
    for (let at = 0; at < frames; at += 100)
      await producer.send({ topic: liveTopics.input, acks: -1, messages: await Promise.all(Array.from({ length: 100 }, (_, n) => recordAt(at + n))) })
    const job = { folder: join(folder, '64'), env, frames }
    const [ratios, cpuRatios, ceilings]: [number[], number[], number[]] = [[], [], []]
    for (let round = 0; round <= rounds; round += 1) {
      const alone = await asked<LiveFound>({ kind: 'inside', ...job })
      const bare = await asked<LiveFound>({ kind: 'live', ...job, name: `bench-bare-${round}`, isBare: true })
      const found = await asked<LiveFound>({ kind: 'live', ...job, name: `bench-live-${round}`, isBare: false })
      if (round > 0) {
        ratios.push(found.framesPerSecond / alone.framesPerSecond)
        cpuRatios.push(alone.cpuMs / found.cpuMs)
        // both on the same cores, one after the other: what no arrangement of them can exceed by much
        ceilings.push(1 / (1 / alone.framesPerSecond + 1 / bare.framesPerSecond) / alone.framesPerSecond)
      }
      say(
        `live, round ${round}: ${Math.round(found.framesPerSecond)} frames a second of ${zonesPerFrame} zones, ${found.cpuMs.toFixed(2)} CPU ms each; the engine alone ${Math.round(alone.framesPerSecond)}, ${alone.cpuMs.toFixed(2)}; all but the engine ${Math.round(bare.framesPerSecond)}, ${bare.cpuMs.toFixed(2)}`,
      )
    }
    const spread = (values: readonly number[]): string => `${median(values).toFixed(2)} x (${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)})`
    say(
      `live: ${spread(ratios)} the engine alone, by CPU time of the process ${spread(cpuRatios)}; with everything but the engine on the same cores ${spread(ceilings)} can be had`,
    )
    return { ratios, cpuRatios, ceilings }
  } finally {
    await Promise.all([producer.disconnect(), admin.disconnect()])
    await stack.end('SIGTERM')
  }
}

/** A reader that subscribes to everything and then takes nothing. */
async function openStalled(port: number): Promise<Socket> {
  const socket = connect({ host: '127.0.0.1', port })
  await once(socket, 'connect')
  socket.write('GET /v1/feeds HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n')
  await once(socket, 'data')
  socket.pause()
  const wish = Buffer.from('{"pictures":"jpeg"}')
  // a masked text frame whose mask is zero
  socket.write(Buffer.concat([Buffer.from([0x81, 0x80 | wish.length, 0, 0, 0, 0]), wish]))
  socket.on('error', () => {})
  return socket
}

async function benchFeeds(say: (text: string) => void): Promise<object> {
  const port = await freePort()
  const server = started({ kind: 'feeds', port, cameras, perSecond: cameras * 5, pictureBytes: 8_000 })
  await once(server, 'message')
  let latencies: number[] = []
  const sockets: WebSocket[] = []
  try {
    for (let at = 0; at < readers; at += 1) {
      const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/feeds`, { perMessageDeflate: false })
      sockets.push(socket)
      await once(socket, 'open')
      socket.on('message', (data: Buffer, isBinary: boolean) => {
        if (isBinary) return
        const { publishedAt } = JSON.parse(data.toString('utf8')) as { publishedAt?: number }
        if (publishedAt !== undefined) latencies.push(performance.timeOrigin + performance.now() - publishedAt)
      })
      socket.send(JSON.stringify({ cameras: Array.from({ length: 4 }, (_, n) => `camera-${(at * 4 + n) % cameras}`), pictures: 'jpeg' }))
    }
    const told = async (): Promise<FeedsFound> => {
      const answer = once(server, 'message')
      server.send('how much')
      return ((await answer) as [FeedsFound])[0]
    }
    const measured = async (): Promise<{ readonly p99: number; readonly count: number } & FeedsFound> => {
      latencies = []
      await sleep(feedSeconds * 1000)
      const sorted = latencies.sort((a, b) => a - b)
      return { p99: sorted[Math.floor(sorted.length * 0.99)] ?? 0, count: sorted.length, ...(await told()) }
    }
    await measured()
    const [ratios, more]: [number[], number[]] = [[], []]
    for (let round = 1; round <= rounds; round += 1) {
      const without = await measured()
      const stalled = await openStalled(port)
      const beside = await measured()
      stalled.destroy()
      ratios.push(beside.p99 / without.p99)
      more.push(beside.residentMB - without.residentMB)
      say(
        `feeds, round ${round}: ${Math.round(beside.count / feedSeconds)} answers a second to ${readers} readers; p99 ${without.p99.toFixed(1)} ms, beside one that takes nothing ${beside.p99.toFixed(1)} ms; resident ${without.residentMB} and ${beside.residentMB} MB; ${beside.skipped - without.skipped} skipped`,
      )
    }
    say(`feeds: ${median(ratios).toFixed(2)} x (${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}), at most ${Math.max(...more)} MB more`)
    return { ratios, more }
  } finally {
    for (const socket of sockets) socket.terminate()
    server.kill('SIGTERM')
    await once(server, 'exit')
  }
}

export async function benchServe(say: (text: string) => void): Promise<object> {
  const entries = { 'serve-runner': 'bench/src/serve-runner.ts', 'predict-runner': 'bench/src/predict-runner.ts', 'engine-thread': 'cloud/src/serve/engine-thread.ts' }
  await bundle(entries, join(build, 'bench'))
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-serve-'))
  try {
    for (const side of sides) await writeModel(join(folder, String(side)), side)
    return { batching: await benchBatching(folder, say), live: await benchLive(folder, say), feeds: await benchFeeds(say) }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
