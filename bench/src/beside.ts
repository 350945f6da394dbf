/**
 * Live frames alone, beside a replay, and beside a backlog that an agent sends after an outage: how long a live frame takes
 * from its announcement until it is prepared. Turns are interleaved, so that a slow minute of the machine hits all of them.
 */
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { simulatedZones } from '@frameloop/deploy/demo'
import { root } from '@frameloop/deploy/home'
import { putZoneFile } from '@frameloop/deploy/label-file'
import { paintScene, sceneHeight, sceneWidth } from '@frameloop/edge-agent/capture/scene'
import { sha256Hex } from '@frameloop/kit/digest'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { mediaIdOf, mintEpoch } from '@frameloop/schemas/ids'
import { bucketName, rawKey } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { tail } from '@frameloop/stream-processors/chain/kafka-bus'
import { inOrder } from '@frameloop/stream-processors/chain/run-stage'
import sharp from 'sharp'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { median } from './measure.ts'

const cameras = ['north', 'east', 'south', 'west']
/** Little enough that the machine is far from busy: beside a full one there is nothing to compare. */
const framesPerSecond = 2
const turnSeconds = 20
const turns = 3
/** More than drains within a turn. */
const backlogOfTurn = 2_000
/** Jiffies of all cores so far: busy, and all. */
function machineTime(): { readonly busy: number; readonly all: number } {
  const [user = 0, nice = 0, system = 0, idle = 0, wait = 0, ...others] = (readFileSync('/proc/stat', 'utf8').split('\n')[0] ?? '').split(/\s+/).slice(1).map(Number)
  const all = [user, nice, system, idle, wait, ...others.slice(0, 3)].reduce((sum, part) => sum + part, 0)
  return { busy: all - idle - wait, all }
}
async function busyShare(act: () => Promise<void>): Promise<number> {
  const before = machineTime()
  await act()
  const after = machineTime()
  return (after.busy - before.busy) / Math.max(1, after.all - before.all)
}
/** What a turn has left to do for catalog, archive and serve must not burden the next one. */
async function quiet(): Promise<void> {
  const isQuiet = await until(async () => (await busyShare(() => sleep(1_000))) < 0.25 || undefined, 120_000, 10)
  if (!isQuiet) throw new Error('the machine did not come to rest within two minutes')
}
const ways = ['alone', 'replay', 'backlog'] as const
type Way = (typeof ways)[number]

export async function benchBeside(say: (text: string) => void): Promise<object> {
  await using home = openOwnHome()
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const brokers = env['KAFKA_BROKERS'] ?? ''
  const [store, pool] = [objectStoreOf(env), openPool(env['DATABASE_URL'] ?? '', 'bench', 2)]
  const producer = openKafka(brokers, 'bench', openLog('bench', 'error')).producer()
  const over = new AbortController()
  try {
    await producer.connect()
    const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
    const behind = cameras.map((name) => `${name}-behind`)
    for (const cameraId of [...cameras, ...behind]) await putZoneFile(stack.state.health['labels'] ?? '', cameraId, 'occupancy', simulatedZones)
    const pictures = await Promise.all(
      Array.from({ length: 200 }, (_, at) =>
        sharp(paintScene(1 + (at % cameras.length), at * 200, 'day'), { raw: { width: sceneWidth, height: sceneHeight, channels: 3 } })
          .jpeg({ quality: 80 })
          .toBuffer(),
      ),
    )
    const epoch = mintEpoch()
    const seqs = new Map<string, number>()
    const announced = new Map<string, number>()
    const record = async (cameraId: string, lane: 'live' | 'backlog', picture: Buffer) => {
      const seq = (seqs.get(cameraId) ?? 0) + 1
      seqs.set(cameraId, seq)
      const mediaId = mediaIdOf('bench', cameraId, epoch, seq)
      const capturedAt = lane === 'live' ? Date.now() : Date.now() - 3_600_000 + seq
      const place = { bucket: bucketName('frameloop', 'raw'), key: rawKey({ siteId: 'default', cameraId, mediaId, capturedAt, extension: 'jpg' }) }
      const sha256 = sha256Hex(picture)
      const { versionId } = await store.putOnce({ ...place, body: picture, sha256, contentType: 'image/jpeg' })
      const event: MediaCaptured = {
        ...{ siteId: 'default', cameraId, mediaId, epoch, seq, lane, source: 'camera', kind: 'image', agentId: 'bench', capturedAt, mediaOffsetUs: null },
        object: { ...place, sha256, bytes: picture.length, versionId: versionId ?? '', contentType: 'image/jpeg' },
        ...{ width: sceneWidth, height: sceneHeight, motion: null, sourceName: 'bench' },
      }
      const topic = lane === 'live' ? topics.mediaCaptured : topics.mediaBackfill
      return {
        mediaId,
        topic: topic.name,
        message: await recordOf(codec, topic, event, { key: cameraId, id: mediaId, time: capturedAt, source: 'bench', traceparent: newTraceparent() }),
      }
    }
    const waits: number[] = []
    let drained = 0
    const reading = (async () => {
      for await (const one of tail(brokers, 'frameloop.bench', topics.featuresPrepared.name, 'end', over.signal)) {
        if (!one) continue
        const { mediaId, lane } = await codec.decode('FeaturesPrepared', one.value)
        const at = announced.get(mediaId)
        if (at !== undefined) waits.push(performance.now() - at)
        announced.delete(mediaId)
        if (lane === 'backlog') drained += 1
      }
    })()
    /** Live frames for a turn, one camera after the other at even distances. Returns how long each took. */
    const live = async (seconds: number): Promise<number[]> => {
      waits.length = 0
      const every = 1_000 / (cameras.length * framesPerSecond)
      const since = performance.now()
      for (let at = 0; at * every < seconds * 1_000; at += 1) {
        const { mediaId, topic, message } = await record(cameras[at % cameras.length] ?? '', 'live', pictures[at % pictures.length] as Buffer)
        announced.set(mediaId, performance.now())
        await producer.send({ topic, acks: -1, messages: [message] })
        const ahead = (at + 1) * every - (performance.now() - since)
        if (ahead > 0) await sleep(ahead)
      }
      const isThrough = await until(async () => announced.size === 0 || undefined, 60_000, 20)
      if (!isThrough) throw new Error(`${announced.size} live frames were not prepared within a minute`)
      return [...waits].sort((a, b) => a - b)
    }
    const frameloop = (...args: string[]) =>
      spawn(process.execPath, [join(root, 'deploy/bin/frameloop.mjs'), ...args], { env: { ...process.env, FRAMELOOP_HOME: home.folder }, stdio: 'ignore' })
    const found: Record<Way, { p50: number; p99: number; busy: number }[]> = { alone: [], replay: [], backlog: [] }
    const rates: number[] = []
    const prepareBacklog = () =>
      inOrder(
        Array.from({ length: backlogOfTurn }, (_, at) => at),
        12,
        (at) => record(behind[at % behind.length] ?? '', 'backlog', pictures[at % pictures.length] as Buffer),
      )
    // what replays read
    const first = await prepareBacklog()
    await producer.send({ topic: topics.mediaBackfill.name, acks: -1, messages: first.map(({ message }) => message) })
    await until(async () => drained === backlogOfTurn || undefined, 120_000, 50)
    await live(5)
    say(`${cameras.length} cameras at ${framesPerSecond} frames a second, turns of ${turnSeconds} s`)
    for (let turn = 0; turn < turns; turn += 1) {
      for (const way of turn % 2 === 0 ? ways : [...ways].reverse()) {
        let end = async (): Promise<void> => {}
        await quiet()
        if (way === 'replay') {
          // again and again, so that one runs all the time
          const from = new Date(Date.now() - 7_200_000).toISOString()
          let isOver = false
          let child: ReturnType<typeof spawn> | undefined
          const running = (async () => {
            while (!isOver) {
              child = frameloop('replay', '--from', from, '--cameras', behind.join(','), '--preprocessing', '96x96,equalise')
              await new Promise((resolve) => child?.once('exit', resolve))
            }
          })()
          end = async () => {
            isOver = true
            child?.kill('SIGINT')
            await running
          }
          await sleep(2_000)
        }
        const before = drained
        if (way === 'backlog') {
          const list = await prepareBacklog()
          await producer.send({ topic: topics.mediaBackfill.name, acks: -1, messages: list.map(({ message }) => message) })
          end = async () => {
            await until(async () => drained - before === backlogOfTurn || undefined, 180_000, 50)
          }
        }
        const since = performance.now()
        let sorted: number[] = []
        const busy = await busyShare(async () => {
          sorted = await live(turnSeconds)
        })
        const at = (share: number): number => sorted[Math.floor(sorted.length * share)] ?? 0
        found[way].push({ p50: at(0.5), p99: at(0.99), busy })
        const rate = (drained - before) / ((performance.now() - since) / 1000)
        if (way === 'backlog') rates.push(rate)
        await end()
        say(
          `turn ${turn + 1} of ${turns}, ${way}: p50 ${Math.round(at(0.5))} ms, p99 ${Math.round(at(0.99))} ms, cores ${Math.round(100 * busy)} % busy${way === 'backlog' ? `; ${Math.round(rate)} frames of the backlog a second meanwhile` : ''}`,
        )
      }
    }
    const ratios = (way: Way): number[] => found[way].map(({ p99 }, at) => p99 / (found.alone[at]?.p99 ?? 1)).sort((a, b) => a - b)
    for (const way of ['replay', 'backlog'] as const)
      say(`beside ${way}: p99 ${median(ratios(way)).toFixed(2)} x alone (${ratios(way)[0]?.toFixed(2)} to ${ratios(way).at(-1)?.toFixed(2)})`)
    over.abort()
    await reading.catch(() => {})
    return { cameras: cameras.length, framesPerSecond, turnSeconds, found, backlogPerSecond: rates, toAlone: { replay: ratios('replay'), backlog: ratios('backlog') } }
  } finally {
    over.abort()
    store.close()
    await producer.disconnect()
    await pool.end()
    await stack.end('SIGTERM')
  }
}
