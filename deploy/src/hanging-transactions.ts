/**
 * Ends transactions that a broker forgot. A broker (4.4, one node) that is killed after it has decided a transaction and before
 * it has written the markers decides after its restart that there are no markers to write, because its partitions have no
 * leader yet: the transaction is "complete" and stays open in its partitions for good, and nobody reads beyond it.
 * `docs/decisions/0006` shows it in the logs.
 * H1  Only what the coordinator's own log calls done is ended, with the outcome that stands there.
 * H2  An open transaction counts as forgotten only when it is still open after its coordinator was seen to be done with it.
 */
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { readTopic } from '@frameloop/stream-processors/chain/kafka-bus'

/** Writes Kafka's flexible encoding (KIP-482): compact strings and arrays, empty tagged fields. */
export class Writer {
  readonly #parts: Buffer[] = []

  int8 = (value: number): this => this.#put(1, (to) => to.writeInt8(value))
  int16 = (value: number): this => this.#put(2, (to) => to.writeInt16BE(value))
  int32 = (value: number): this => this.#put(4, (to) => to.writeInt32BE(value))
  int64 = (value: bigint): this => this.#put(8, (to) => to.writeBigInt64BE(value))
  tags = (): this => this.int8(0)

  #put(bytes: number, write: (to: Buffer) => void): this {
    const part = Buffer.alloc(bytes)
    write(part)
    this.#parts.push(part)
    return this
  }

  uvarint(value: number): this {
    let rest = value
    while (rest > 0x7f) {
      this.#parts.push(Buffer.from([(rest & 0x7f) | 0x80]))
      rest >>>= 7
    }
    this.#parts.push(Buffer.from([rest]))
    return this
  }

  string(text: string): this {
    const bytes = Buffer.from(text)
    this.uvarint(bytes.length + 1)
    this.#parts.push(bytes)
    return this
  }

  array<Item>(items: readonly Item[], write: (item: Item) => void): this {
    this.uvarint(items.length + 1)
    for (const item of items) write(item)
    return this
  }

  get bytes(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

class Reader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  int8 = (): number => this.#bytes.readInt8(this.#step(1))
  int16 = (): number => this.#bytes.readInt16BE(this.#step(2))
  int32 = (): number => this.#bytes.readInt32BE(this.#step(4))
  int64 = (): bigint => this.#bytes.readBigInt64BE(this.#step(8))

  #step(bytes: number): number {
    const at = this.#at
    this.#at += bytes
    return at
  }

  uvarint(): number {
    let value = 0
    for (let shift = 0; ; shift += 7) {
      const byte = this.#bytes.readUInt8(this.#step(1))
      value |= (byte & 0x7f) << shift
      if (byte < 0x80) return value
    }
  }

  string(): string {
    return this.text(this.uvarint() - 1)
  }

  text(length: number): string {
    if (length < 0) return ''
    const at = this.#step(length)
    return this.#bytes.toString('utf8', at, at + length)
  }

  array<Item>(read: () => Item): Item[] {
    const items: Item[] = []
    for (let left = this.uvarint() - 1; left > 0; left -= 1) items.push(read())
    return items
  }

  tags(): void {
    for (let left = this.uvarint(); left > 0; left -= 1) {
      this.uvarint()
      const size = this.uvarint()
      this.#step(size)
    }
  }
}

const api = { writeTxnMarkers: [27, 1], describeProducers: [61, 0] } as const
const limit = 10_000

/** One connection to one broker without TLS or login: the embedded one. */
export class BrokerConnection {
  readonly #socket: Socket
  #correlation = 0

  private constructor(socket: Socket) {
    this.#socket = socket
  }

  static open(broker: string): Promise<BrokerConnection> {
    const [host = '', port = ''] = broker.split(':')
    return new Promise((resolve, reject) => {
      const socket = connect(Number(port), host)
      socket.once('error', reject)
      socket.once('connect', () => {
        socket.off('error', reject)
        socket.on('error', () => {})
        resolve(new BrokerConnection(socket))
      })
    })
  }

  /** One request at a time. */
  call([key, version]: readonly [number, number], body: Writer): Promise<Reader> {
    this.#correlation += 1
    const head = new Writer().int16(key).int16(version).int32(this.#correlation).int16(-1).tags().bytes
    const payload = Buffer.concat([head, body.bytes])
    return new Promise((resolve, reject) => {
      let got = Buffer.alloc(0)
      const end = (act: () => void): void => {
        clearTimeout(timer)
        this.#socket.off('data', read).off('close', closed)
        act()
      }
      const closed = (): void => end(() => reject(new Fault('KAFKA_UNAVAILABLE', `The broker closed the connection on request ${key}`)))
      const timer = setTimeout(() => end(() => reject(new Fault('KAFKA_UNAVAILABLE', `The broker did not answer request ${key} within ${limit} ms`))), limit)
      const read = (chunk: Buffer): void => {
        got = Buffer.concat([got, chunk])
        if (got.length < 4 || got.length < 4 + got.readInt32BE(0)) return
        const answer = new Reader(got.subarray(8))
        answer.tags()
        end(() => resolve(answer))
      }
      this.#socket.on('data', read).once('close', closed)
      this.#socket.write(Buffer.concat([new Writer().int32(payload.length).bytes, payload]))
    })
  }

  close(): void {
    this.#socket.destroy()
  }
}

interface OpenTransaction {
  readonly topic: string
  readonly partition: number
  readonly producerId: bigint
  readonly producerEpoch: number
  readonly coordinatorEpoch: number
  readonly startOffset: bigint
}

interface TopicPartitions {
  readonly name: string
  readonly partitions: readonly number[]
}

async function openTransactions(broker: BrokerConnection, topics: readonly TopicPartitions[]): Promise<OpenTransaction[]> {
  const request = new Writer()
  request.array(topics, ({ name, partitions }) => request.string(name).array(partitions, request.int32).tags()).tags()
  const answer = await broker.call(api.describeProducers, request)
  answer.int32()
  const found: OpenTransaction[] = []
  answer.array(() => {
    const topic = answer.string()
    answer.array(() => {
      const partition = answer.int32()
      answer.int16()
      answer.string()
      answer.array(() => {
        const producerId = answer.int64()
        const producerEpoch = answer.int32()
        answer.int32()
        answer.int64()
        const coordinatorEpoch = answer.int32()
        const startOffset = answer.int64()
        answer.tags()
        if (startOffset >= 0n) found.push({ topic, partition, producerId, producerEpoch, coordinatorEpoch, startOffset })
      })
      answer.tags()
    })
    answer.tags()
  })
  return found
}

/** What a coordinator wrote down about the transaction of an id. */
export interface Entry {
  readonly id: string
  readonly producerId: bigint
  readonly epoch: number
  readonly state: string
  /** `TOPIC PARTITION`; none once it is done. */
  readonly partitions: readonly string[]
}

/** Codes of states in the coordinators' log (Kafka's `TransactionState`). */
const stateNames = ['Empty', 'Ongoing', 'PrepareCommit', 'PrepareAbort', 'CompleteCommit', 'CompleteAbort', 'Dead']

/** `TransactionLogKey` and `TransactionLogValue`, of which version 1 has the flexible encoding; undefined for what is none. */
export function entryOf(key: Buffer, value: Buffer): Entry | undefined {
  if (value.length < 17) return undefined
  const reader = new Reader(value)
  const isFlexible = reader.int16() >= 1
  const [producerId, epoch] = [reader.int64(), reader.int16()]
  reader.int32()
  const state = stateNames[reader.int8()] ?? ''
  const listOf = <Item>(read: () => Item): Item[] => (isFlexible ? reader.array(read) : Array.from({ length: Math.max(0, reader.int32()) }, read))
  const partitions = listOf(() => {
    const topic = isFlexible ? reader.string() : reader.text(reader.int16())
    const named = listOf(reader.int32).map((partition) => `${topic} ${partition}`)
    if (isFlexible) reader.tags()
    return named
  }).flat()
  return { id: key.toString('utf8', 4), producerId, epoch, state, partitions }
}

/** All that the coordinators still hold in their log, the newest of an id last. */
export async function readTransactionLog(broker: string): Promise<Entry[]> {
  const entries: Entry[] = []
  for await (const { key, keyBytes, value } of readTopic(broker, 'frameloop.transactions', '__transaction_state', AbortSignal.timeout(60_000))) {
    const entry = entryOf(Buffer.from(keyBytes ?? key), value)
    if (entry) entries.push(entry)
  }
  return entries
}

/**
 * How a transaction ended that its coordinator is done with. An epoch has many of them, one after the other, so what counts is
 * what was decided about this partition; one that is given up for its producer's silence ends under a later epoch.
 */
export function outcomeOf(
  { topic, partition, producerId, producerEpoch }: Omit<OpenTransaction, 'startOffset' | 'coordinatorEpoch'>,
  log: readonly Entry[],
): 'commit' | 'abort' | undefined {
  let outcome: 'commit' | 'abort' | undefined
  let isDone = false
  for (const entry of log) {
    if (entry.producerId !== producerId || entry.epoch < producerEpoch) continue
    const isAboutIt = entry.partitions.includes(`${topic} ${partition}`)
    if (isAboutIt && entry.state === 'Ongoing' && entry.epoch === producerEpoch) {
      outcome = undefined
      isDone = false
    } else if (isAboutIt && entry.state.startsWith('Prepare')) outcome ??= entry.state === 'PrepareCommit' ? 'commit' : 'abort'
    // once it is, later transactions of its producer change nothing about it
    else if (!entry.state.startsWith('Prepare')) isDone ||= outcome !== undefined
  }
  return isDone ? outcome : undefined
}

async function writeMarker(broker: BrokerConnection, open: OpenTransaction, isCommit: boolean): Promise<void> {
  const request = new Writer()
  request
    .array([open], ({ producerId, producerEpoch, topic, partition, coordinatorEpoch }) =>
      request
        .int64(producerId)
        .int16(producerEpoch)
        .int8(isCommit ? 1 : 0)
        .array([topic], (name) => request.string(name).array([partition], request.int32).tags())
        .int32(Math.max(0, coordinatorEpoch))
        .tags(),
    )
    .tags()
  const answer = await broker.call(api.writeTxnMarkers, request)
  answer.array(() => {
    answer.int64()
    answer.array(() => {
      answer.string()
      answer.array(() => {
        answer.int32()
        const error = answer.int16()
        answer.tags()
        if (error !== 0) throw new Fault('KAFKA_UNAVAILABLE', `The broker refused a transaction marker for ${open.topic} partition ${open.partition} with error ${error}`)
      })
      answer.tags()
    })
    answer.tags()
  })
}

const same = (a: OpenTransaction, b: OpenTransaction): boolean =>
  a.topic === b.topic && a.partition === b.partition && a.producerId === b.producerId && a.startOffset === b.startOffset

/** Ends every forgotten transaction of the embedded broker. Returns what was ended, for people. */
export async function endHangingTransactions(broker: string, logger: Log): Promise<string[]> {
  const admin = openKafka(broker, 'stack', logger).admin()
  await admin.connect()
  const topics = await admin
    .listTopics()
    .then((names) => admin.fetchTopicMetadata({ topics: names }))
    .finally(() => admin.disconnect())
  const all = topics.topics.map(({ name, partitions }) => ({ name, partitions: partitions.map(({ partitionId }) => partitionId) }))
  const connection = await BrokerConnection.open(broker)
  try {
    const seen = await openTransactions(connection, all)
    if (seen.length === 0) return []
    // most of them end by themselves within milliseconds
    await sleep(250)
    const lasting = (await openTransactions(connection, all)).filter((now) => seen.some((then) => same(now, then)))
    if (lasting.length === 0) return []
    const log = await readTransactionLog(broker)
    const ended: string[] = []
    for (const open of (await openTransactions(connection, all)).filter((now) => lasting.some((then) => same(now, then)))) {
      const outcome = outcomeOf(open, log)
      if (!outcome) continue
      const place = `${open.topic} partition ${open.partition}`
      try {
        await writeMarker(connection, open, outcome === 'commit')
        ended.push(`${place} (${outcome === 'commit' ? 'committed' : 'aborted'})`)
      } catch (thrown) {
        logger.warn({ err: thrown }, `a transaction that the broker has forgotten was not ended in ${place}`)
      }
    }
    return ended
  } finally {
    connection.close()
  }
}
