/** One hop in a process of its own: bytes passed through, or a stage on our runtime, with transactions or at least once. Asked by `hop.ts`. */
import { openLog } from '@frameloop/kit/log'
import { openMetrics } from '@frameloop/kit/metrics'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import type { Topic } from '@frameloop/schemas/topics'
import type { Bus, Consumer, Position } from '@frameloop/stream-processors/chain/bus'
import { kafkaBus, produce, sending } from '@frameloop/stream-processors/chain/kafka-bus'
import { startStage } from '@frameloop/stream-processors/chain/run-stage'
import type { Stage } from '@frameloop/stream-processors/chain/stage'
import rdkafka from 'node-rdkafka'

export interface HopJob {
  readonly way: 'bytes' | 'codec' | 'hop' | 'transactions'
  readonly name: string
  readonly input: string
  readonly output: string
  readonly env: Readonly<Record<string, string>>
}

/** Told as it goes: records that are through for good. */
export interface HopNews {
  readonly through: number
  /** CPU time of this process since it read the first record, ms. */
  readonly cpuMs: number
  readonly at: number
}

const commitEvery = 100
const job = JSON.parse(process.argv[2] ?? '{}') as HopJob
const brokers = job.env['KAFKA_BROKERS'] ?? ''
const log = openLog('bench', 'error')

let through = 0
let first: { readonly at: number; readonly cpu: NodeJS.CpuUsage } | undefined
const began = (): void => {
  if (first) return
  first = { at: performance.timeOrigin + performance.now(), cpu: process.cpuUsage() }
  process.send?.({ through: 0, cpuMs: 0, at: first.at } satisfies HopNews)
}
const passed = (records: number): void => {
  through += records
  const { user, system } = process.cpuUsage(first?.cpu)
  process.send?.({ through, cpuMs: (user + system) / 1000, at: performance.timeOrigin + performance.now() } satisfies HopNews)
}

const settings = { 'metadata.broker.list': brokers, ...sending }

function openPlainProducer(): Promise<rdkafka.Producer> {
  const producer = new rdkafka.Producer(settings, { partitioner: 'murmur2_random' } as rdkafka.ProducerTopicConfig)
  return new Promise((resolve, reject) =>
    producer.connect({ timeout: 30_000 }, (error) => {
      producer.setPollInterval(10)
      if (error) reject(error)
      else resolve(producer)
    }),
  )
}
const flushed = (producer: rdkafka.Producer): Promise<void> => new Promise((resolve, reject) => producer.flush(30_000, (error) => (error ? reject(error) : resolve())))

/** The same client with the same settings. Values untouched: what it costs to pass records on at all; or decoded and encoded anew in the plainest loop. */
async function pass(isDecoded: boolean): Promise<void> {
  const codec = openCodec(openRegistry(job.env['SCHEMA_REGISTRY_URL'] ?? ''))
  const consumer = new rdkafka.KafkaConsumer(
    {
      'metadata.broker.list': brokers,
      'group.id': job.name,
      'enable.auto.commit': false,
      'enable.partition.eof': true,
      'isolation.level': 'read_committed',
      'fetch.wait.max.ms': 100,
      'fetch.queue.backoff.ms': 10,
      'queued.max.messages.kbytes': 32_768,
    },
    { 'auto.offset.reset': 'earliest' },
  )
  const producer = await openPlainProducer()
  await new Promise<void>((resolve, reject) => consumer.connect({ timeout: 30_000 }, (error) => (error ? reject(error) : resolve())))
  consumer.setDefaultConsumeTimeout(200)
  consumer.subscribe([job.input])
  let open = 0
  let since = performance.now()
  for (;;) {
    const messages = await new Promise<rdkafka.Message[]>((resolve, reject) => consumer.consume(2_000, (error, got) => (error ? reject(error) : resolve(got))))
    if (messages.length > 0) began()
    for (const { value: bytes, key, headers } of messages) {
      let value = bytes
      if (isDecoded && bytes) {
        const event = codec.decode('MediaValidated', bytes)
        const encoded = codec.encode(job.output, 'MediaValidated', event instanceof Promise ? await event : event)
        value = encoded instanceof Promise ? await encoded : encoded
      }
      producer.produce(job.output, null, value, key, null, undefined, headers ?? [])
    }
    open += messages.length
    if (open > 0 && (performance.now() - since >= commitEvery || messages.length === 0)) {
      await flushed(producer)
      consumer.commitSync(null as never)
      passed(open)
      open = 0
      since = performance.now()
    }
  }
}

/** The runtime's bus without transactions: offsets are committed every 100 ms, after all that was produced is acknowledged. */
function atLeastOnce(bus: Bus): Bus {
  return {
    ...bus,
    async openProducer() {
      const producer = await openPlainProducer()
      const open = new Map<string, Position>()
      let client: rdkafka.KafkaConsumer | undefined
      let since = performance.now()
      let count = 0
      const settle = async (): Promise<void> => {
        since = performance.now()
        const [offsets, records] = [[...open.values()], count]
        count = 0
        open.clear()
        await flushed(producer)
        client?.commitSync(offsets)
        passed(records)
      }
      setInterval(() => void (count > 0 && performance.now() - since >= commitEvery && settle()), commitEvery)
      return {
        async transact(records, offsets, consumer) {
          for (const record of records) produce(producer, record)
          if (!consumer) return
          client = (consumer as Consumer & { readonly client: rdkafka.KafkaConsumer }).client
          for (const offset of offsets) open.set(`${offset.topic} ${offset.partition}`, offset)
          count += records.length
          if (performance.now() - since >= commitEvery) await settle()
        },
        discard: async () => void producer.disconnect(),
      }
    },
  }
}

/** Tells when records come and when they are through. */
function watched(bus: Bus): Bus {
  return {
    ...bus,
    async connectConsumer(options) {
      const consumer = await bus.connectConsumer(options)
      const poll = consumer.poll.bind(consumer)
      consumer.poll = async (limit) => {
        const records = await poll(limit)
        if (records.length > 0) began()
        return records
      }
      return consumer
    },
    async openProducer(id, openLogOf) {
      const producer = await bus.openProducer(id, openLogOf)
      return {
        async transact(records, offsets, consumer, onStep) {
          await producer.transact(records, offsets, consumer, onStep)
          // the other bus says itself when they are
          if (consumer && job.way === 'transactions') passed(records.length)
        },
        discard: () => producer.discard(),
      }
    },
  }
}

async function runOurs(): Promise<void> {
  const topicOf = (name: string): Topic<'MediaValidated'> => ({ name, event: 'MediaValidated', retention: 3_600_000, compacted: false })
  const [input, output] = [topicOf(job.input), topicOf(job.output)]
  const stage: Stage<'MediaValidated'> = {
    name: job.name,
    version: '1',
    inputs: [input],
    outputs: [output],
    work: ({ event }) => ({ kind: 'emit', outputs: [{ topic: output, event, key: event.cameraId, id: event.mediaId, time: event.capturedAt }] }),
  }
  const bus = kafkaBus(brokers)
  const { run } = startStage(stage, {
    bus: watched(job.way === 'hop' ? atLeastOnce(bus) : bus),
    instance: '1',
    codec: openCodec(openRegistry(job.env['SCHEMA_REGISTRY_URL'] ?? '')),
    store: objectStoreOf(job.env),
    bucketPrefix: 'frameloop',
    log,
    metrics: openMetrics('bench'),
  })
  await run(new AbortController().signal)
}

// it does not outlive the benchmark that asked for it
process.once('disconnect', () => process.exit())
await (job.way === 'bytes' || job.way === 'codec' ? pass(job.way === 'codec') : runOurs())
