/**
 * Ends transactions that a broker forgot. A broker (4.4, one node) that is killed after it has decided a transaction and before
 * it has written the markers decides after its restart that there are no markers to write, because its partitions have no
 * leader yet: the transaction is "complete" and stays open in its partitions for good, and nobody reads beyond it.
 * `docs/decisions/0006` shows it in the logs.
 * H1  Only what the coordinator calls complete is ended, with the outcome that the coordinator recorded.
 * H2  An open transaction counts as forgotten only when it is still open after its coordinator was seen to be done with it.
 */
import { connect, type Socket } from 'node:net'
import { Fault } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'

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
    const length = this.uvarint() - 1
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

const api = { writeTxnMarkers: [27, 1], describeProducers: [61, 0], describeTransactions: [65, 0], listTransactions: [66, 0] } as const
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

/** What a coordinator recorded of the newest transaction of an id. */
export interface TransactionState {
  readonly id: string
  readonly producerId: bigint
  readonly epoch: number
  readonly state: string
}

export async function transactionStates(broker: BrokerConnection): Promise<TransactionState[]> {
  const all = new Writer()
  all
    .array([], () => {})
    .array([], () => {})
    .tags()
  const listed = await broker.call(api.listTransactions, all)
  listed.int32()
  listed.int16()
  listed.array(() => listed.string())
  const ids = listed.array(() => {
    const id = listed.string()
    listed.int64()
    listed.string()
    listed.tags()
    return id
  })
  const request = new Writer()
  request.array(ids, (id) => request.string(id)).tags()
  const answer = await broker.call(api.describeTransactions, request)
  answer.int32()
  return answer.array(() => {
    answer.int16()
    const id = answer.string()
    const state = answer.string()
    answer.int32()
    answer.int64()
    const producerId = answer.int64()
    const epoch = answer.int16()
    answer.array(() => {
      answer.string()
      answer.array(answer.int32)
      answer.tags()
    })
    answer.tags()
    return { id, producerId, epoch, state }
  })
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
export async function endHangingTransactions(broker: string, log: Log): Promise<string[]> {
  const admin = openKafka(broker, 'stack', log).admin()
  await admin.connect()
  const topics = await admin
    .listTopics()
    .then((names) => admin.fetchTopicMetadata({ topics: names }))
    .finally(() => admin.disconnect())
  const all = topics.topics.map(({ name, partitions }) => ({ name, partitions: partitions.map(({ partitionId }) => partitionId) }))
  const connection = await BrokerConnection.open(broker)
  try {
    const before = await openTransactions(connection, all)
    if (before.length === 0) return []
    const states = new Map((await transactionStates(connection)).map((one) => [one.producerId, one]))
    const after = await openTransactions(connection, all)
    const ended: string[] = []
    for (const open of after.filter((now) => before.some((then) => same(now, then)))) {
      const known = states.get(open.producerId)
      if (known?.epoch !== open.producerEpoch || (known.state !== 'CompleteCommit' && known.state !== 'CompleteAbort')) continue
      await writeMarker(connection, open, known.state === 'CompleteCommit')
      ended.push(`${open.topic} partition ${open.partition} (${known.state === 'CompleteCommit' ? 'committed' : 'aborted'})`)
    }
    return ended
  } finally {
    connection.close()
  }
}
