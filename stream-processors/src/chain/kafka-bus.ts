/**
 * node-rdkafka behind one file: a consumer that hands out batches, a transactional producer, a bounded reader.
 * B1  Only committed records are read (`read_committed`), and never by auto-commit.
 * B2  A batch comes as soon as there is one record, with all that lies ready behind it; it never waits to be full.
 * B3  The producer is idempotent; a configuration that says otherwise does not start.
 * B4  A request of a transaction that was not answered is not sent again under the same epoch: it may be on its way still, and
 *     would end the next transaction in its middle. The producer is given up before the client would repeat it (`docs/decisions/0015`).
 * B5  Offsets are sent when all outputs have been acknowledged: whatever ends a transaction too early, no offset passes a record
 *     whose outputs are not there.
 */

import { isUtf8 } from 'node:buffer'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, toError } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import { retry } from '@frameloop/kit/retry'
import type { Ms } from '@frameloop/kit/units'
import { textOf } from '@frameloop/schemas/avro-types'
import rdkafka from 'node-rdkafka'
import type { Bus, Consumer, ConsumerOptions, OnStep, PollLimits, Position, Produced, Producer, TopicPartition } from './bus.ts'
import type { BusRecord } from './stage.ts'

const codes = rdkafka.CODES.ERRORS
/** librdkafka's logical offset: the oldest record there is. */
const beginning = -2

/** A request that was not answered for so long is repeated by the client, on a new connection. */
const requestTimeout: Ms = 15_000
/** B4 */
const requestPatience: Ms = 12_000

/**
 * How long the broker holds a question when there is nothing new. What comes is answered at once all the same; asking ten
 * times a second instead kept it busy for a fifth of a core with nothing to do.
 */
const longPoll: Ms = 500
/** For readers of a bounded range: its end shows in an empty answer. */
const shortPoll: Ms = 50

/** A client that has lost its coordinator for a moment does not notice in the middle of a question that it is back. */
const askPatience: Ms = 4_000
/** So often a consumer asks where it begins, about a minute; then another process has another one. */
const askTries = 12

/** Within which a group gives a member that lost its place another one; others may have work in hand first. */
const placePatience: Ms = 60_000

/** A reader of a range looks around when nothing has come for so long. */
const quietPatience: Ms = 5_000

/** A call with a Node callback, as a promise that cannot hang for longer than `limit`. */
// biome-ignore lint/suspicious/noExplicitAny: node-rdkafka types its errors without the name they do have
type Done<Result> = (error: any, result?: Result) => void

function called<Result>(what: string, limit: Ms, act: (done: Done<Result>) => void): Promise<Result> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Fault('KAFKA_UNAVAILABLE', `Kafka did not answer within ${limit} ms while ${what}`, { what })), limit)
    const done: Done<Result> = (error, result) => {
      clearTimeout(timer)
      if (error) reject(error)
      else resolve(result as Result)
    }
    try {
      act(done)
    } catch (thrown) {
      done(toError(thrown))
    }
  })
}

function toText(value: Buffer | string | null | undefined): string {
  if (typeof value === 'string') return value
  return value ? textOf(value, 0, value.length) : ''
}

function headersOf(raw: readonly Record<string, Buffer | string>[] | undefined): Record<string, string> {
  const headers: Record<string, string> = {}
  for (const header of raw ?? []) for (const name in header) headers[name] = toText(header[name])
  return headers
}

function toRecord(message: rdkafka.Message): BusRecord {
  const key = message.key as Buffer | string | null | undefined
  const record: BusRecord = {
    topic: message.topic,
    partition: message.partition,
    offset: message.offset,
    timestamp: message.timestamp ?? 0,
    key: toText(key),
    value: message.value ?? Buffer.alloc(0),
    headers: headersOf(message.headers as Record<string, Buffer | string>[] | undefined),
  }
  // only what is no text loses something in becoming one
  return Buffer.isBuffer(key) && record.key.includes('\ufffd') && !isUtf8(key) ? { ...record, keyBytes: key } : record
}

/** Errors that came behind messages: the client says each of them once. */
const errorsBehind = new WeakMap<rdkafka.KafkaConsumer, unknown>()

/** A broker that is away comes back; librdkafka reconnects by itself. */
function passes(thrown: unknown): boolean {
  const { code } = thrown as { code?: unknown }
  return typeof code === 'number' && code !== codes.ERR__FATAL && code !== codes.ERR_FENCED_INSTANCE_ID
}

/** How long the next record of a flow may take: what comes in pieces would be worked on in pieces, and each costs a transaction. */
const flowPatience: Ms = 10

/**
 * Up to `limit` messages: as soon as there is one, with those that lie ready behind it. Asked for many at once the client
 * would wait for the topics to run dry, which it notices with the next empty answer only (50 to 100 ms later, measured).
 * `isFlowing`: the last one was full, so there is more, and a thread of the client gathers it while this one works.
 */
async function take(client: rdkafka.KafkaConsumer, limit: number, patience: Ms, isFlowing = false): Promise<rdkafka.Message[]> {
  const ask = (count: number, timeout: Ms): Promise<rdkafka.Message[]> => {
    client.setDefaultConsumeTimeout(timeout)
    return called('reading', 60_000, (done) => client.consume(count, done))
  }
  if (errorsBehind.has(client)) {
    const thrown = errorsBehind.get(client)
    errorsBehind.delete(client)
    throw thrown
  }
  if (isFlowing) {
    const all = await ask(limit, flowPatience)
    if (all.length > 0) return all
  }
  const first = await ask(1, patience)
  if (first.length === 0 || limit === 1) return first
  const ready = await ask(limit - 1, 1).catch((thrown: unknown) => {
    // what is in hand must not get lost with it
    errorsBehind.set(client, thrown)
    return []
  })
  return [...first, ...ready]
}

const shared = (brokers: string, clientId: string) => ({
  'metadata.broker.list': brokers,
  'client.id': clientId,
  'socket.keepalive.enable': true,
  // a connection that has gone silent is opened anew before transactions and sessions have run out twice
  'socket.timeout.ms': requestTimeout,
  // small requests would wait for the answer to the one before (librdkafka waits before 2.10 unless it is told not to)
  'socket.nagle.disable': true,
  'reconnect.backoff.ms': 50,
  'reconnect.backoff.max.ms': 1_000,
  log_level: 3,
})

type KafkaConsumerOptions = ConsumerOptions & { readonly brokers: string }

class KafkaConsumer implements Consumer {
  readonly #client: rdkafka.KafkaConsumer
  /** Reads what waits: a client of its own, because messages of all partitions stand in one queue inside a client. It is no member of the group. */
  readonly #backlog: rdkafka.KafkaConsumer | undefined
  readonly #options: KafkaConsumerOptions
  #assigned: readonly TopicPartition[] = []
  /** Where each partition's end was last seen: behind its records there may be transaction markers, which nobody is handed. */
  readonly #ends = new Map<string, number>()
  #generation = 0
  #isClosing = false
  /** Ends what a rebalance began when the next one does. */
  #taking = new AbortController()

  private constructor(options: KafkaConsumerOptions) {
    this.#options = options
    const reading = {
      ...shared(options.brokers, options.instance),
      'group.id': options.groupId,
      'enable.auto.commit': false,
      'enable.partition.eof': true,
      'isolation.level': 'read_committed',
      ...(options.gather === undefined ? { 'fetch.wait.max.ms': longPoll } : { 'fetch.wait.max.ms': options.gather, 'fetch.min.bytes': 1_000_000 }),
      'fetch.queue.backoff.ms': 10,
      // partitions are given out as the member knows them that does it: while the broker stood still it may have heard of none
      'topic.metadata.refresh.interval.ms': 5_000,
    } as const
    const fromBeginning = { 'auto.offset.reset': 'earliest' } as const
    this.#backlog = options.backlog?.length ? new rdkafka.KafkaConsumer({ ...reading, 'queued.max.messages.kbytes': 8_192 }, fromBeginning) : undefined
    this.#client = new rdkafka.KafkaConsumer(
      {
        ...reading,
        'group.instance.id': options.instance,
        'session.timeout.ms': 6_000,
        'heartbeat.interval.ms': 1_500,
        // the same partition of every input must come to the same instance, because memory is kept per partition
        'partition.assignment.strategy': 'range',
        // sixteen clips, each with all the time that decoding one may take; who is dead is known by its heartbeat
        'max.poll.interval.ms': 7_200_000,
        'queued.max.messages.kbytes': 32_768,
        rebalance_cb: ((event: { readonly code: number }, partitions: readonly TopicPartition[]) => this.#rebalanced(event, partitions)) as never,
      },
      fromBeginning,
    )
  }

  get #clients(): readonly rdkafka.KafkaConsumer[] {
    return this.#backlog ? [this.#client, this.#backlog] : [this.#client]
  }

  #clientOf({ topic }: { readonly topic: string }): rdkafka.KafkaConsumer {
    return this.#backlog && this.#options.backlog?.includes(topic) ? this.#backlog : this.#client
  }

  static async connect(options: KafkaConsumerOptions): Promise<KafkaConsumer> {
    const consumer = new KafkaConsumer(options)
    for (const client of consumer.#clients) {
      await called('connecting a consumer', 60_000, (done) => client.connect({ timeout: 30_000 }, done))
      client.on('event.error', (error) => options.log.debug({ err: error }, 'consumer reported'))
      // a membership that Kafka has ended for good is said to a poll once, which may come by it behind a message; the log has it always
      client.on('event.log', ({ fac, message }: { readonly fac: string; readonly message: string }) => {
        if (fac === 'FATAL') consumer.#failure ??= new Fault('PRODUCER_FENCED', `Kafka has ended the membership of ${options.instance}: ${message}`, { instance: options.instance })
      })
      client.on('partition.eof', ({ topic, partition, offset }: Position) => {
        // handed over when a read returns, and it may be of an assignment that has ended during it
        if (consumer.#readingSince.get(client) === consumer.#generation) consumer.#ends.set(`${topic} ${partition}`, offset)
      })
    }
    // the group subscribes to both, or the offsets of a backlog that is seldom used would expire
    consumer.#client.subscribe([...options.topics, ...(options.backlog ?? [])])
    return consumer
  }

  /** Changes with every assignment; work begun under an older number must be thrown away. */
  get generation(): number {
    return this.#generation
  }

  get assigned(): readonly TopicPartition[] {
    return this.#assigned
  }

  /** The group's member data, for offsets inside a transaction. */
  get client(): rdkafka.KafkaConsumer {
    return this.#client
  }

  #rebalanced(event: { readonly code: number }, partitions: readonly TopicPartition[]): void {
    this.#generation += 1
    this.#taking.abort()
    this.#taking = new AbortController()
    const { signal } = this.#taking
    this.#ends.clear()
    clearTimeout(this.#homeless)
    this.#homeless = undefined
    if (event.code === codes.ERR__ASSIGN_PARTITIONS) {
      this.#startAt(partitions, signal).then(
        (positions) => {
          // partitions that come while it is being closed, or were taken back meanwhile, are nobody's concern any more
          if (this.#isClosing || signal.aborted) return
          for (const client of this.#clients) client.assign(positions.filter((position) => this.#clientOf(position) === client) as rdkafka.TopicPartition[])
          this.#assigned = partitions.map(({ topic, partition }) => ({ topic, partition }))
          this.#options.log.info({ partitions: partitions.length }, 'partitions assigned')
        },
        (thrown: unknown) => {
          if (this.#isClosing || signal.aborted) return
          this.#options.log.error({ err: thrown }, 'partitions could not be taken over')
          for (const client of this.#clients) client.unassign()
          this.#failure = toError(thrown)
        },
      )
      return
    }
    // a pause outlives an assignment, and whoever paused it forgets that with this one
    try {
      this.resume(this.#assigned)
    } catch (thrown) {
      this.#options.log.debug({ err: thrown }, 'what was assigned is gone already')
    }
    this.#assigned = []
    for (const client of this.#clients) client.unassign()
    this.#expectPlace()
  }

  #failure: Error | undefined
  #homeless: NodeJS.Timeout | undefined

  /** A client whose membership ended while the broker stood still may never ask for another one, though Kafka answers it: another process does. */
  #expectPlace(): void {
    const timer = setTimeout(() => {
      this.#client.getMetadata({ timeout: 5_000 }, (error) => {
        if (this.#isClosing || this.#homeless !== timer) return
        if (error) this.#expectPlace()
        else this.#failure ??= new Fault('KAFKA_UNAVAILABLE', `${this.#options.instance} has lost its place in its group, and was given no other within ${placePatience} ms`)
      })
    }, placePatience).unref()
    this.#homeless = timer
  }

  /** What a stage remembers of its partitions is read when whoever had them before can change it no more: when their last transaction has ended. */
  async #startAt(partitions: readonly TopicPartition[], signal: AbortSignal): Promise<readonly (TopicPartition & { readonly offset?: number })[]> {
    const { startAt, log } = this.#options
    if (!startAt) return partitions
    // answered once no offset of them is part of a transaction that is open (`read_committed`)
    const settle = () => called('waiting for open transactions', 10_000, (done) => this.#client.committed([...partitions], askPatience, done))
    // a broker that is away comes back
    const onRetry = (thrown: unknown, attempt: number): void => {
      if (attempt === 2)
        log.warn({ err: thrown }, 'committed offsets cannot be read: Kafka is away, or a transaction of these partitions stays open, which `kafka-transactions find-hanging` names')
      else log.debug({ err: thrown }, 'open transactions could not be waited for')
    }
    await retry(settle, { backoff: { first: 500, cap: 2_000 }, attempts: askTries, isTransient: () => true, onRetry }, signal)
    // it clears what a later assignment may have read by now; a broker that has just come back knows none of its partitions yet
    const take = () => {
      signal.throwIfAborted()
      return startAt(partitions, signal)
    }
    return retry(
      take,
      { backoff: { first: 500, cap: 2_000 }, attempts: 5, isTransient: passes, onRetry: (thrown) => log.debug({ err: thrown }, 'partitions could not be taken over') },
      signal,
    )
  }

  async poll({ lane, limit, patience }: PollLimits): Promise<BusRecord[]> {
    if (this.#failure) throw this.#failure
    const client = lane === 'live' ? this.#client : this.#backlog
    return client ? (await this.#take(client, limit, patience)).map(toRecord) : []
  }

  /** Under which assignment each began to read last. */
  readonly #readingSince = new Map<rdkafka.KafkaConsumer, number>()

  /** Those whose last batch was full. */
  readonly #flowing = new Set<rdkafka.KafkaConsumer>()

  async #take(client: rdkafka.KafkaConsumer, limit: number, patience: Ms): Promise<rdkafka.Message[]> {
    this.#readingSince.set(client, this.#generation)
    const taken = await take(client, limit, patience, this.#flowing.has(client)).catch((thrown: unknown) => {
      // what was being read has not come back in time, and may still come: nobody knows what it took, so nothing is read any more
      if (thrown instanceof Fault) {
        this.#failure ??= thrown
        throw thrown
      }
      if (passes(thrown)) return []
      // the one fatal error of a consumer: its name is used by another, or the broker has forgotten it (after a crash of its own)
      throw new Fault('PRODUCER_FENCED', `Kafka has ended the membership of ${this.#options.instance}`, { instance: this.#options.instance }, thrown)
    })
    if (taken.length === limit && limit > 1) this.#flowing.add(client)
    else this.#flowing.delete(client)
    return taken
  }

  async seek(positions: readonly Position[]): Promise<void> {
    for (const position of positions) {
      this.#ends.delete(`${position.topic} ${position.partition}`)
      await called('seeking', 15_000, (done) => this.#clientOf(position).seek(position, 10_000, done))
    }
  }

  pause(partitions: readonly TopicPartition[]): void {
    for (const client of this.#clients) client.pause(partitions.filter((partition) => this.#clientOf(partition) === client) as rdkafka.TopicPartition[])
  }

  resume(partitions: readonly TopicPartition[]): void {
    for (const client of this.#clients) client.resume(partitions.filter((partition) => this.#clientOf(partition) === client) as rdkafka.TopicPartition[])
  }

  /** Where the group stands for good in what is assigned. */
  async committed(): Promise<Position[]> {
    const found = await called<readonly { topic: string; partition: number; offset?: number }[]>('asking for committed offsets', 20_000, (done) =>
      this.#client.committed([...this.#assigned], askPatience, done),
    )
    return found.map(({ topic, partition, offset }) => ({ topic, partition, offset: offset === undefined || offset < 0 ? beginning : offset }))
  }

  /** Records between `positions` and the end of each partition, by topic, as far as the client knows; asked when all that was polled is done. */
  lag(positions: ReadonlyMap<string, number>): Map<string, number> {
    const lags = new Map<string, number>()
    for (const { topic, partition } of this.#assigned) {
      const { highOffset } = this.#clientOf({ topic }).getWatermarkOffsets(topic, partition)
      const at = Math.max(positions.get(`${topic} ${partition}`) ?? -1, this.#ends.get(`${topic} ${partition}`) ?? -1)
      const open = at < 0 || highOffset < 0 ? 0 : Math.max(0, highOffset - at)
      lags.set(topic, (lags.get(topic) ?? 0) + open)
    }
    return lags
  }

  endOf({ topic, partition }: TopicPartition): number | undefined {
    return this.#ends.get(`${topic} ${partition}`)
  }

  async close(): Promise<void> {
    this.#isClosing = true
    clearTimeout(this.#homeless)
    this.#taking.abort()
    for (const client of this.#clients) await called('closing a consumer', 10_000, (done) => client.disconnect(done)).catch(() => {})
  }
}

/** How every producer of the chain sends. */
export const sending = {
  'enable.idempotence': true,
  // batches of what one turn of a stage produces, not of what fits in one of its milliseconds; a commit sends what waits at once
  'linger.ms': 5,
  'compression.codec': 'lz4',
  'message.max.bytes': 9_000_000,
  'queue.buffering.max.messages': 500_000,
  'queue.buffering.max.kbytes': 262_144,
} as const

/** Hands one record to the client, which copies it. */
export function produce(client: rdkafka.Producer, { topic, partition, key, value, headers }: Produced): void {
  const list: Record<string, string | Buffer>[] = []
  for (const name in headers) list.push({ [name]: headers[name] as string | Buffer })
  // what stands where the opaque belongs, `null` as well, is kept for a delivery report, and for good where none is asked for
  client.produce(topic, partition ?? null, value, key, null, undefined, list)
}

/** A transactional producer. After any error it is not used again: `discard` it and open a new one with the same id. */
export class TransactionalProducer implements Producer {
  readonly #client: rdkafka.Producer
  /** The transaction that has not ended yet, if any. */
  #underWay: Promise<void> = Promise.resolve()
  /** The client's call that has not come back yet, if any: it may take longer than anybody waits for it. */
  #calling: Promise<void> = Promise.resolve()

  private constructor(brokers: string, transactionalId: string, log: Log) {
    const settings = {
      ...shared(brokers, transactionalId),
      'transactional.id': transactionalId,
      ...sending,
      'transaction.timeout.ms': 15_000,
      // the next transaction's first request waits for the last one's markers in steps of this (measured: p50 74 → 7 ms)
      'retry.backoff.ms': 2,
    } as const
    this.#client = new rdkafka.Producer(settings, { partitioner: 'murmur2_random' } as rdkafka.ProducerTopicConfig)
    this.#client.on('event.error', (error) => log.debug({ err: error }, 'producer reported'))
  }

  /** Connects and fences whoever used this id before; a transaction they left open is aborted or completed first. */
  static async open(brokers: string, transactionalId: string, log: Log): Promise<TransactionalProducer> {
    const producer = new TransactionalProducer(brokers, transactionalId, log)
    try {
      await called('connecting a producer', 60_000, (done) => producer.#client.connect({ timeout: 30_000 }, done))
      producer.#client.setPollInterval(50)
      await called('initialising transactions', 70_000, (done) => producer.#client.initTransactions(60_000, done))
      return producer
    } catch (thrown) {
      await producer.discard()
      throw thrown
    }
  }

  /** Publishes all of it and moves the group's offsets, or nothing. */
  transact(records: readonly Produced[], offsets: readonly Position[], consumer: Consumer | undefined, onStep: OnStep = () => {}): Promise<void> {
    const transacting = this.#transact(records, offsets, consumer, onStep)
    this.#underWay = transacting.catch(() => {})
    return transacting
  }

  #call(what: string, limit: Ms, act: (done: Done<never>) => void): Promise<void> {
    return called(what, limit, (done) => {
      this.#calling = new Promise((resolve) =>
        act((error, result) => {
          resolve()
          done(error, result)
        }),
      )
    })
  }

  async #transact(records: readonly Produced[], offsets: readonly Position[], consumer: Consumer | undefined, onStep: OnStep): Promise<void> {
    const generation = consumer?.generation
    await this.#call('beginning a transaction', 15_000, (done) => this.#client.beginTransaction(done))
    await onStep('begun')
    for (const record of records) produce(this.#client, record)
    // B5
    if (records.length > 0) await this.#call('sending records', requestPatience + 2_000, (done) => this.#client.flush(requestPatience, done))
    await onStep('produced')
    if (consumer && offsets.length > 0) {
      // sent now they would count for the new assignment, in which some of these partitions may be somebody else's
      if (consumer.generation !== generation) throw new Fault('KAFKA_UNAVAILABLE', 'Partitions changed hands during the transaction')
      const { client } = consumer as KafkaConsumer
      await this.#call('sending offsets', requestPatience + 2_000, (done) => this.#client.sendOffsetsToTransaction([...offsets], client, requestPatience, done))
    }
    await onStep('offsets sent')
    await this.#call('committing', requestPatience + 2_000, (done) => this.#client.commitTransaction(requestPatience, done))
    await onStep('committed')
  }

  /**
   * A client that is destroyed inside a transaction's call deadlocks with it, and the process that waits for its threads
   * never ends (librdkafka 2.x: rd_kafka_txns_term destroys what the call waits for). So the call goes first.
   */
  async discard(): Promise<void> {
    const close = () => called('closing a producer', 5_000, (done) => this.#client.disconnect(1_000, done)).catch(() => {})
    const quiet = this.#underWay.then(() => this.#calling)
    const isQuiet = await Promise.race([quiet.then(() => true), sleep(5_000, false)])
    if (isQuiet) await close()
    else void quiet.then(close)
  }
}

/** Whether another instance with the same name has taken over: then this one must end. */
function isFenced(thrown: unknown): boolean {
  if (thrown instanceof Fault && thrown.code === 'PRODUCER_FENCED') return true
  const code = (thrown as { code?: number }).code
  return code === codes.ERR__FENCED || code === codes.ERR_FENCED_INSTANCE_ID || code === codes.ERR_PRODUCER_FENCED || code === codes.ERR_INVALID_PRODUCER_EPOCH
}

/** A client that reads committed records without joining a group; closed when `use` has ended. `whenGone`: what happens when an offset asked for is no longer kept. */
async function* withReader<Item>(
  brokers: string,
  name: string,
  whenGone: 'earliest' | 'error',
  fetchWait: Ms,
  use: (client: rdkafka.KafkaConsumer) => AsyncGenerator<Item>,
): AsyncGenerator<Item> {
  const client = new rdkafka.KafkaConsumer(
    {
      ...shared(brokers, name),
      'group.id': name,
      'enable.auto.commit': false,
      'enable.partition.eof': true,
      'isolation.level': 'read_committed',
      'fetch.wait.max.ms': fetchWait,
      'fetch.queue.backoff.ms': 10,
    },
    { 'auto.offset.reset': whenGone },
  )
  await called('connecting a reader', 60_000, (done) => client.connect({ timeout: 30_000 }, done))
  try {
    yield* use(client)
  } finally {
    await called('closing a reader', 10_000, (done) => client.disconnect(done)).catch(() => {})
  }
}

export interface Range extends TopicPartition {
  /** Inclusive. */
  readonly from: number
  /** Exclusive. */
  readonly until: number
}

/**
 * Reads committed records of the ranges and ends when every partition's position has reached the range's end
 * (transaction markers leave gaps, so offsets are never counted).
 */
async function* batchesOf(client: rdkafka.KafkaConsumer, ranges: readonly Range[], signal: AbortSignal): AsyncGenerator<BusRecord[]> {
  const open = new Map(ranges.filter((range) => range.until > range.from).map((range) => [`${range.topic} ${range.partition}`, range]))
  if (open.size === 0) return
  const ends = new Set<string>()
  client.on('partition.eof', ({ topic, partition }: { topic: string; partition: number }) => ends.add(`${topic} ${partition}`))
  client.assign([...open.values()].map(({ topic, partition, from }) => ({ topic, partition, offset: from })) as rdkafka.TopicPartition[])
  const reached = new Map([...open].map(([key, { from }]) => [key, from]))
  let quietSince = performance.now()
  while (open.size > 0) {
    signal.throwIfAborted()
    const messages = await take(client, 2_000, 200)
    if (messages.length > 0) quietSince = performance.now()
    else if (performance.now() - quietSince > quietPatience) {
      // the client says once that an offset is gone, and then nothing of that partition ever again
      for (const [key, { topic, partition }] of open) await stillThere(client, topic, partition, reached.get(key) ?? 0)
      quietSince = performance.now()
    }
    const records: BusRecord[] = []
    for (const message of messages) {
      const key = `${message.topic} ${message.partition}`
      reached.set(key, message.offset + 1)
      const range = open.get(key)
      if (!range) continue
      if (message.offset < range.until) records.push(toRecord(message))
      if (message.offset + 1 >= range.until) open.delete(key)
    }
    if (records.length > 0) yield records
    // the last offsets of a range may be markers: the end of the partition, which is said behind its last record, proves that
    // nothing is left, also while more and more comes on others
    for (const key of ends) open.delete(key)
  }
}

/** Throws `HISTORY_INCOMPLETE` where the broker has deleted what comes next. */
async function stillThere(client: rdkafka.KafkaConsumer, topic: string, partition: number, next: number): Promise<void> {
  // a broker that is away has deleted nothing
  const bounds = await called<rdkafka.WatermarkOffsets>('reading bounds', 20_000, (done) => client.queryWatermarkOffsets(topic, partition, 15_000, done)).catch(() => undefined)
  if (bounds && bounds.lowOffset > next)
    throw new Fault('HISTORY_INCOMPLETE', `Kafka has deleted the offsets ${next} to ${bounds.lowOffset - 1} of ${topic}/${partition} while they were to be read`, {
      topic,
      partition,
    })
}

/** One record after the other. */
export async function* oneByOne(batches: AsyncIterable<readonly BusRecord[]>): AsyncGenerator<BusRecord> {
  for await (const batch of batches) for (const record of batch) yield record
}

/**
 * Committed records of the ranges, in batches: one by one, each would be handed through every generator on its way.
 * No group is joined. Throws when the broker no longer keeps where a range begins: it never skips in silence.
 */
export async function* rangeBatches(brokers: string, name: string, ranges: readonly Range[], signal: AbortSignal): AsyncGenerator<readonly BusRecord[]> {
  if (ranges.length > 0) yield* withReader(brokers, name, 'error', shortPoll, (client) => batchesOf(client, ranges, signal))
}

export function readRanges(brokers: string, name: string, ranges: readonly Range[], signal: AbortSignal): AsyncGenerator<BusRecord> {
  return oneByOne(rangeBatches(brokers, name, ranges, signal))
}

async function bounds(client: rdkafka.KafkaConsumer, topic: string): Promise<Range[]> {
  const metadata = await called<rdkafka.Metadata>('reading metadata', 20_000, (done) => client.getMetadata({ topic, timeout: 15_000 }, done))
  const partitions = metadata.topics.find(({ name: found }) => found === topic)?.partitions ?? []
  return Promise.all(
    partitions.map(async ({ id }) => {
      for (let attempt = 1; ; attempt += 1) {
        try {
          const { lowOffset, highOffset } = await called<rdkafka.WatermarkOffsets>('reading bounds', 20_000, (done) => client.queryWatermarkOffsets(topic, id, 15_000, done))
          return { topic, partition: id, from: lowOffset, until: highOffset }
        } catch (thrown) {
          // a topic that was made a moment ago
          if (attempt === 20 || (thrown as { code?: number }).code !== codes.ERR_NOT_LEADER_FOR_PARTITION) throw thrown
          await sleep(100)
        }
      }
    }),
  )
}

/** What the broker keeps of the topics: the first offset there is, and one past the last. */
export async function readBounds(brokers: string, name: string, topicNames: readonly string[]): Promise<Range[]> {
  const found: Range[] = []
  for await (const range of withReader(brokers, name, 'error', shortPoll, async function* (client) {
    for (const topic of topicNames) yield* await bounds(client, topic)
  }))
    found.push(range)
  return found
}

/** Committed records of a topic as it is now, of the partitions named or of all. */
export function readTopic(brokers: string, name: string, topic: string, signal: AbortSignal, partitions?: readonly number[]): AsyncGenerator<BusRecord> {
  const batches = withReader(brokers, name, 'error', shortPoll, async function* (client) {
    const ranges = await bounds(client, topic)
    yield* batchesOf(
      client,
      ranges.filter(({ partition }) => partitions?.includes(partition) ?? true),
      signal,
    )
  })
  return oneByOne(batches)
}

/** Every record of a topic, all partitions, no group, on and on; `undefined` once, when all that was there at the start has been read. */
export async function* tail(brokers: string, name: string, topic: string, from: 'end' | 'beginning', signal: AbortSignal): AsyncGenerator<BusRecord | undefined> {
  yield* withReader(brokers, name, 'earliest', longPoll, async function* (client) {
    const open = await bounds(client, topic)
    client.assign(open.map(({ partition, from: low, until }) => ({ topic, partition, offset: from === 'end' ? until : low })) as rdkafka.TopicPartition[])
    const waiting = new Set(from === 'end' ? [] : open.filter((range) => range.until > range.from).map(({ partition }) => partition))
    // the last offsets may be markers, so the end of a partition is asked for, not counted
    client.on('partition.eof', ({ partition }: { partition: number }) => waiting.delete(partition))
    let isCaughtUp = false
    while (!signal.aborted) {
      const messages = await take(client, 200, 200).catch((thrown: unknown) => {
        if (passes(thrown)) return []
        throw thrown
      })
      for (const message of messages) yield toRecord(message)
      if (isCaughtUp || waiting.size > 0 || messages.length > 0) continue
      isCaughtUp = true
      yield undefined
    }
  })
}

export function kafkaBus(brokers: string): Bus {
  return {
    connectConsumer: (options) => KafkaConsumer.connect({ ...options, brokers }),
    openProducer: (transactionalId, log) => TransactionalProducer.open(brokers, transactionalId, log),
    readTopic: (name, topic, signal, partitions) => readTopic(brokers, name, topic, signal, partitions),
    isFenced,
  }
}
