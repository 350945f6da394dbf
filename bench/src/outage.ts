/**
 * The agent after an outage: how long a live frame takes from capture to Kafka's word for it, alone and while what two hours
 * left goes out beside it, and where that time goes.
 */
import { setMaxListeners } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { runAnnouncer } from '@frameloop/edge-agent/announce/announcer'
import { Spool } from '@frameloop/edge-agent/spool/spool'
import { runUploader } from '@frameloop/edge-agent/upload/uploader'
import { sha256Hex } from '@frameloop/kit/digest'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { type ObjectStore, objectStoreOf } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import { openCodec } from '@frameloop/schemas/codec'
import { mintEpoch } from '@frameloop/schemas/ids'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { headOf, shown } from './agent.ts'
import { footageFrames } from './pictures.ts'

const outage = 2 * 3_600_000
const cameras = ['north', 'south'] as const
/** Live frames a second, of both together. */
const rate = 10
const seconds = 30
const rounds = 4
const log = openLog('bench', 'silent')

/** When a live frame came to each point, ms since its capture. */
type Way = Partial<Record<'durable' | 'sent' | 'stored' | 'announced', number>>
const points = ['durable', 'sent', 'stored', 'announced'] as const

const p95Of = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length * 0.95)] ?? 0

export async function benchOutage(say: (text: string) => void): Promise<object> {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-outage-bench-'))
  await using home = openOwnHome()
  try {
    const small = footageFrames(folder, 50)
    const pictures = Array.from({ length: 50 }, (_, at) => readFileSync(join(small, `${at}.jpg`)))
    const stack = await startOwnStack(home, ['--no-demo'])
    try {
      return await measure(folder, pictures, stack.state.environment, say)
    } finally {
      await stack.end('SIGTERM')
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

async function measure(folder: string, pictures: readonly Buffer[], env: Readonly<Record<string, string>>, say: (text: string) => void): Promise<object> {
  const store = objectStoreOf(env)
  const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
  const kafka = openKafka(env['KAFKA_BROKERS'] ?? '', 'bench', log)
  const [producer, admin] = [kafka.producer(), kafka.admin()]
  await Promise.all([producer.connect(), admin.connect()])
  await createTopics(
    admin,
    [topics.mediaCaptured, topics.mediaBackfill].map(({ name }) => ({ topic: `bench.${name}`, numPartitions: 6 })),
  )
  const digests = pictures.map((picture) => sha256Hex(picture))
  const spool = await Spool.open({ folder: join(folder, 'outage'), capacity: 8_000_000_000, segmentBytes: 16_000_000 }, log)
  const epoch = mintEpoch()
  const seqs = new Map<string, number>()
  /** By capture time: that of live frames is theirs alone. */
  let ways = new Map<number, Way>()
  const reached = (capturedAt: number, point: keyof Way): void => {
    const way = ways.get(capturedAt)
    if (way) way[point] = Date.now() - capturedAt
  }
  const append = (cameraId: string, capturedAt: number, at: number): Promise<unknown> => {
    const seq = (seqs.get(cameraId) ?? 0) + 1
    seqs.set(cameraId, seq)
    return spool.append({ ...headOf(epoch, seq, digests[at % pictures.length] ?? '', cameraId), capturedAt }, pictures[at % pictures.length] as Buffer)
  }
  const timed: ObjectStore = {
    ...store,
    async putOnce(object, signal) {
      const capturedAt = Number(object.metadata?.['captured-at'])
      reached(capturedAt, 'sent')
      const stored = await store.putOnce(object, signal)
      reached(capturedAt, 'stored')
      return stored
    },
  }
  const told: typeof producer = {
    ...producer,
    async send(record) {
      // beside the chain: it would work on the same cores
      const answer = await producer.send({ ...record, topic: `bench.${record.topic}` })
      if (record.topic === topics.mediaCaptured.name)
        for (const { value } of record.messages) reached((await codec.decode('MediaCaptured', value as Buffer)).capturedAt, 'announced')
      return answer
    },
  }
  const stop = new AbortController()
  const identity = { agentId: 'bench-outage', siteId: 'bench', bucketPrefix: 'frameloop' }
  const troubles = { uploads: new Map<string, string>(), announcements: '' }
  let isOut = false
  setMaxListeners(0, stop.signal)
  const running = [
    runUploader(spool, timed, identity, () => ({ concurrency: 6, limit: 0, windows: isOut ? ['00:00-00:00'] : [], outside: 'nothing' }), troubles, log, stop.signal),
    runAnnouncer(spool, told, codec, identity, troubles, log, stop.signal),
  ]
  const live = async (): Promise<Readonly<Record<keyof Way, number>>> => {
    ways = new Map()
    const began = Date.now()
    for (let at = 0; at < seconds * rate; at += 1) {
      const due = began + (at * 1000) / rate
      if (due > Date.now()) await sleep(due - Date.now())
      const capturedAt = Date.now()
      ways.set(capturedAt, {})
      void append(cameras[at % cameras.length] ?? '', capturedAt, at).then(() => reached(capturedAt, 'durable'))
    }
    const all = [...ways.values()]
    const through = await until(() => all.every(({ announced }) => announced !== undefined) || undefined, 60_000, 10)
    if (!through) throw new Error(`${all.filter(({ announced }) => announced !== undefined).length} of ${all.length} live frames were announced`)
    return Object.fromEntries(points.map((point) => [point, p95Of(all.map((way) => way[point] ?? 0))])) as Record<keyof Way, number>
  }
  const found: { readonly alone: Readonly<Record<keyof Way, number>>; readonly beside: Readonly<Record<keyof Way, number>>; readonly drained: number }[] = []
  const wayOf = (way: Readonly<Record<keyof Way, number>>): string => points.map((point) => `${point} ${way[point]}`).join(', ')
  const waiting = (outage / 1000) * cameras.length
  for (let round = 0; round < rounds; round += 1) {
    const alone = await live()
    isOut = true
    const began = Date.now() - outage
    for (let from = 0; from < waiting; from += 256)
      await Promise.all(
        Array.from({ length: Math.min(256, waiting - from) }, (_, n) => append(cameras[(from + n) % cameras.length] ?? '', began + ((from + n) / cameras.length) * 1000, from + n)),
      )
    isOut = false
    // the last half minute of the outage is live as well, and has waited already
    const late = await until(() => ![...spool.entries].some(({ head }) => head.capturedAt > Date.now() - 31_000) || undefined, 60_000, 50)
    if (!late) throw new Error('the last frames of the outage were not delivered within a minute')
    const before = spool.size.frames
    const beside = await live()
    const drained = (before - spool.size.frames) / seconds
    found.push({ alone, beside, drained })
    say(`round ${round + 1}: live p95 ms alone: ${wayOf(alone)}; while ${drained.toFixed(0)} frames of ${waiting} drain a second: ${wayOf(beside)}`)
    if (!(await until(() => spool.size.frames === 0 || undefined, 600_000, 100))) throw new Error('the backlog did not drain within ten minutes')
  }
  stop.abort()
  await Promise.allSettled(running)
  await spool.close()
  await Promise.all([producer.disconnect(), admin.disconnect()])
  store.close()
  say(`after two hours of outage: live p95 ${shown(found.map(({ alone, beside }) => beside.announced / alone.announced))} of normal`)
  return { found }
}
