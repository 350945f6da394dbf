/** Inference in a process of its own: its engine against fixed batches, the live stage, the feeds. Asked by `serve.ts`. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'
import websocket from '@fastify/websocket'
import { digestOf, type ModelFiles, modelFileNames } from '@frameloop/cloud/models/model-files'
import type { ModelSlots, Slot } from '@frameloop/cloud/models/model-slots'
import { Engine } from '@frameloop/cloud/serve/engine'
import type { Question, Report } from '@frameloop/cloud/serve/engine-thread'
import { Feeds } from '@frameloop/cloud/serve/feeds'
import { liveStage } from '@frameloop/cloud/serve/live'
import { openLog } from '@frameloop/kit/log'
import { openMetrics } from '@frameloop/kit/metrics'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openCodec } from '@frameloop/schemas/codec'
import type { FeaturesPrepared, PredictionMade } from '@frameloop/schemas/events'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { kafkaBus, readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import { startStage } from '@frameloop/stream-processors/chain/run-stage'
import Fastify from 'fastify'
import { median } from './measure.ts'
import { type BatchingFound, type FeedsFound, type LiveFound, liveTopics, type ServeJob } from './serve-jobs.ts'

/** Two of each: a thread per core, as serving has. */
const threads = 2

const program = new URL('engine-thread.mjs', import.meta.url)
const filesIn = (folder: string): ModelFiles => new Map(modelFileNames.map((name) => [name, readFileSync(join(folder, name))]))

/** The program of the engine's threads, asked in batches of one size, with no queue but the threads' own. */
class FixedBatches {
  readonly #workers: Worker[] = []
  readonly #done = new Map<number, (report: Report) => void>()
  #ids = 0

  async open(digest: string, files: ModelFiles): Promise<void> {
    for (let at = 0; at < threads; at += 1) {
      const worker = new Worker(program)
      worker.on('message', (report: Report) => {
        this.#done.get(report.id)?.(report)
        this.#done.delete(report.id)
      })
      this.#workers.push(worker)
      await this.order(at, { kind: 'load', digest, files, engines: ['onnxruntime'] })
    }
  }

  order(worker: number, order: object, transferred: ArrayBuffer[] = []): Promise<Report> {
    const id = ++this.#ids
    return new Promise((resolve) => {
      this.#done.set(id, resolve)
      this.#workers[worker]?.postMessage({ ...order, id }, transferred)
    })
  }

  answer(worker: number, question: Question, bytes: Uint8Array, count: number): Promise<Report> {
    const packed = new Uint8Array(count * bytes.length)
    for (let at = 0; at < count; at += 1) packed.set(bytes, at * bytes.length)
    const order = { kind: 'answer', questions: new Array(count).fill(question), packed, ends: Array.from({ length: count }, (_, at) => (at + 1) * bytes.length) }
    return this.order(worker, order, [packed.buffer])
  }

  async perSecond(question: Question, bytes: Uint8Array, batch: number, seconds: number): Promise<number> {
    const until = performance.now() + seconds * 1000
    let answered = 0
    const keep = async (worker: number): Promise<void> => {
      while (performance.now() < until) {
        await this.answer(worker, question, bytes, batch)
        answered += batch
      }
    }
    const since = performance.now()
    // one that is worked on and one that is ready, for each
    await Promise.all(Array.from({ length: 2 * threads }, (_, at) => keep(at % threads)))
    return answered / ((performance.now() - since) / 1000)
  }

  async close(): Promise<void> {
    for (const worker of this.#workers) await worker.terminate()
  }
}

/** Milliseconds of each of the questions that come by chance, `rate` a second on average. */
async function openLoop(rate: number, seconds: number, ask: () => Promise<unknown>): Promise<number[]> {
  const took: number[] = []
  const asked: Promise<void>[] = []
  const began = performance.now()
  let at = began
  while (at < began + seconds * 1000) {
    at += (-Math.log(1 - Math.random()) / rate) * 1000
    // timers are coarse: what is due is asked, with the moment it was due
    while (performance.now() < at) await new Promise((resolve) => setImmediate(resolve))
    const due = performance.now()
    asked.push(ask().then(() => void took.push(performance.now() - due)))
  }
  await Promise.all(asked)
  return took.sort((a, b) => a - b)
}
const at95 = (sorted: readonly number[]): number => sorted[Math.floor(sorted.length * 0.95)] ?? 0

async function batching(folder: string, seconds: number): Promise<BatchingFound> {
  const files = filesIn(folder)
  const digest = digestOf(files)
  const { width = 0, height = 0 } = JSON.parse(String(files.get('meta.json') ?? '{}')) as { width?: number; height?: number }
  const question: Question = { kind: 'pixels', digest, referenceKey: 'c z' }
  const bytes = new Uint8Array(width * height * 3).map((_, at) => (at * 31) % 256)
  const fixed = new FixedBatches()
  await fixed.open(digest, files)
  const engine = new Engine(threads, ['onnxruntime'], program)
  await engine.load(digest, files)
  const adaptiveFor = async (forSeconds: number): Promise<number> => {
    const until = performance.now() + forSeconds * 1000
    let answered = 0
    const since = performance.now()
    const keep = async (): Promise<void> => {
      while (performance.now() < until) {
        await engine.ask(question, bytes)
        answered += 1
      }
    }
    await Promise.all(Array.from({ length: 256 }, keep))
    return answered / ((performance.now() - since) / 1000)
  }
  const found: Record<number, number[]> = {}
  const adaptive: number[] = []
  for (let round = 0; round < 4; round += 1) {
    for (const batch of [1, 2, 4, 8, 16, 32, 64, 128]) {
      const speed = await fixed.perSecond(question, bytes, batch, seconds)
      if (round > 0) found[batch] = [...(found[batch] ?? []), speed]
    }
    const speed = await adaptiveFor(2 * seconds)
    if (round > 0) adaptive.push(speed)
  }
  const medians = Object.fromEntries(Object.entries(found).map(([batch, speeds]) => [batch, median(speeds)]))
  const rate = Math.max(...Object.values(medians)) / 10
  const [together, alone]: [number[], number[]] = [[], []]
  for (let round = 0; round < 3; round += 1) {
    together.push(at95(await openLoop(rate, 3, () => engine.ask(question, bytes))))
    let next = 0
    alone.push(at95(await openLoop(rate, 3, () => fixed.answer(next++ % threads, question, bytes, 1))))
  }
  await fixed.close()
  await engine.close()
  return { fixed: medians, adaptive: median(adaptive), light: { p95: median(together), p95Alone: median(alone) } }
}

const cpu = (since?: NodeJS.CpuUsage): number => {
  const { user, system } = process.cpuUsage(since)
  return (user + system) / 1000
}

async function openModel(folder: string): Promise<{ readonly engine: Engine; readonly slot: Slot }> {
  const files = filesIn(folder)
  const digest = digestOf(files)
  const engine = new Engine(threads, ['onnxruntime'], program)
  const model = await engine.load(digest, files)
  const change = { task: 'bench', modelName: 'bench', version: '1', alias: 'champion', digest, preprocessing: '' }
  return { engine, slot: { change, model } as unknown as Slot }
}

const madeUp = { ask: () => Promise.resolve({ scored: [{ scores: [0.9, 0.1] }], predictMs: 0 }) }

/** The live stage over all frames of the topic. */
async function live({ folder, env, frames, name, isBare }: Extract<ServeJob, { kind: 'live' }>): Promise<LiveFound> {
  const { engine, slot } = await openModel(folder)
  const slots = { answering: () => [slot] } as unknown as ModelSlots
  let [answered, began, before]: [number, number, NodeJS.CpuUsage | undefined] = [0, 0, undefined]
  const bus = kafkaBus(env['KAFKA_BROKERS'] ?? '')
  const abort = new AbortController()
  const stage = startStage(
    { ...liveStage(slots, isBare ? madeUp : engine, { made: () => {}, failed: () => {} }), name, inputs: [{ ...topics.featuresPrepared, name: liveTopics.input }] },
    {
      bus: {
        ...bus,
        async connectConsumer(options) {
          const consumer = await bus.connectConsumer(options)
          const poll = consumer.poll.bind(consumer)
          consumer.poll = async (limits) => {
            const records = await poll(limits)
            if (records.length > 0 && !before) [began, before] = [performance.now(), process.cpuUsage()]
            return records
          }
          return consumer
        },
        async openProducer(id, log) {
          const producer = await bus.openProducer(id, log)
          return {
            discard: () => producer.discard(),
            async transact(records, offsets, consumer, onStep) {
              const moved = records.map((record) => (record.topic === topics.predictionsMade.name ? { ...record, topic: liveTopics.output } : record))
              await producer.transact(moved, offsets, consumer, onStep)
              answered += new Set(records.filter(({ topic }) => topic === topics.predictionsMade.name).map(({ headers }) => String(headers['ce_id']))).size
              if (answered >= frames) abort.abort()
            },
          }
        },
      },
      instance: 'bench',
      codec: openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? '')),
      store: objectStoreOf(env),
      bucketPrefix: 'frameloop',
      log: openLog('bench', 'error'),
      metrics: openMetrics('bench'),
    },
  )
  let took = { ms: 0, cpuMs: 0 }
  abort.signal.addEventListener('abort', () => {
    took = { ms: performance.now() - began, cpuMs: cpu(before) }
  })
  await stage.run(abort.signal).catch(() => {})
  await engine.close()
  return { framesPerSecond: frames / (took.ms / 1000), cpuMs: took.cpuMs / frames }
}

/** The engine alone on the same tensors, which lie in memory. */
async function inside({ folder, env, frames }: Extract<ServeJob, { kind: 'inside' }>): Promise<LiveFound> {
  const { engine, slot } = await openModel(folder)
  const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
  const events: FeaturesPrepared[] = []
  for await (const { value } of readTopic(env['KAFKA_BROKERS'] ?? '', 'frameloop.bench', liveTopics.input, AbortSignal.timeout(120_000)))
    events.push(await codec.decode('FeaturesPrepared', value))
  const [since, before] = [performance.now(), process.cpuUsage()]
  let next = 0
  const one = async (): Promise<void> => {
    for (let event = events[next++]; event; event = events[next++]) {
      const { zones, pixels, cameraId } = event
      await Promise.all(
        zones.map(({ zone, offset, shape }) =>
          engine.ask(
            { kind: 'pixels', digest: slot.change.digest, referenceKey: `${cameraId} ${zone}` },
            (pixels as Buffer).subarray(offset, offset + shape.reduce((product, side) => product * side, 1)),
          ),
        ),
      )
    }
  }
  await Promise.all(Array.from({ length: 64 }, one))
  const found = { framesPerSecond: events.length / ((performance.now() - since) / 1000), cpuMs: cpu(before) / events.length }
  await engine.close()
  if (events.length !== frames) throw new Error(`${events.length} of ${frames} frames lay on the topic`)
  return found
}

/** Answers of many cameras to whoever subscribes, with the moment each was published. */
async function feeds(port: number, cameras: number, perSecond: number, pictureBytes: number): Promise<void> {
  const picture = Buffer.alloc(pictureBytes, 7)
  const open = new Feeds(() => Promise.resolve(picture))
  const app = Fastify()
  await app.register(websocket, { options: { perMessageDeflate: false } })
  app.get('/v1/feeds', { websocket: true }, (socket, { raw }) => open.add(socket, raw.socket))
  await app.listen({ host: '127.0.0.1', port })
  void open.run(new AbortController().signal)
  let [seq, due] = [0, performance.now()]
  setInterval(() => {
    while (due < performance.now()) {
      const cameraId = `camera-${seq % cameras}`
      const prediction = {
        ...{ cameraId, zone: 'door', task: 'occupancy', frameId: `${cameraId}-${seq}`, seq, answer: 'free', confidence: 0.9, classes: ['free', 'taken'], scores: [0.9, 0.1] },
        ...{ modelName: 'bench', modelVersion: '1', answeredAt: Date.now(), publishedAt: performance.timeOrigin + performance.now() },
        picture: { bucket: 'b', key: 'k', sha256: '', bytes: pictureBytes, versionId: '', contentType: 'image/jpeg' },
      } as unknown as PredictionMade
      open.publish(prediction, '0'.repeat(32), { partition: 0, offset: seq })
      seq += 1
      due += 1000 / perSecond
    }
  }, 5)
  process.on('message', () => process.send?.({ residentMB: Math.round(process.memoryUsage().rss / 1e6), skipped: open.numbers.skipped } satisfies FeedsFound))
  process.send?.('ready')
}

process.once('SIGTERM', () => process.exit())
// it does not outlive the benchmark that asked for it
process.once('disconnect', () => process.exit())
const job = JSON.parse(process.argv[2] ?? '{}') as ServeJob
if (job.kind === 'feeds') await feeds(job.port, job.cameras, job.perSecond, job.pictureBytes)
else {
  const found = job.kind === 'batching' ? await batching(job.folder, job.seconds) : job.kind === 'live' ? await live(job) : await inside(job)
  process.send?.(found, () => process.exit(0))
}
