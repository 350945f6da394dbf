/**
 * A bus in memory with what the runtime relies on: partitions in order, groups with committed offsets, transactions that
 * are all or nothing, and fencing by name. For tests that need thousands of runs; the same contract holds on Kafka.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '@frameloop/kit/fault'
import { Partitioners } from 'kafkajs'
import type { Bus, Consumer, ConsumerOptions, OnStep, PollLimits, Position, Produced, Producer, TopicPartition } from './bus.ts'
import { whereCommitted } from './bus.ts'
import type { BusRecord } from './stage.ts'

/** What becomes of a commit: it works; it works and the answer is lost; it does not and neither does the answer come. */
export type CommitFate = 'answered' | 'done, answer lost' | 'not done'

export interface MemoryBus extends Bus {
  createTopic(topic: string, partitions: number): void
  send(records: readonly Produced[]): void
  /** Takes all partitions back from whoever reads them and gives them out again, as a group does when a member comes or goes. */
  rebalance(): Promise<void>
  /** Decides about each commit; everything is answered unless this says otherwise. */
  fate: (transactionalId: string) => CommitFate
}

const fenced = (what: string): Fault => new Fault('PRODUCER_FENCED', `Another ${what} has taken over`)
const placeOf = ({ topic, partition }: TopicPartition): string => `${topic} ${partition}`

export function memoryBus(): MemoryBus {
  const topics = new Map<string, BusRecord[][]>()
  const committed = new Map<string, Map<string, number>>()
  const producers = new Map<string, symbol>()
  const consumers = new Map<string, symbol>()
  const readers = new Set<{ assign(): Promise<void> }>()
  const choose = Partitioners.DefaultPartitioner()

  const partitionsOf = (topic: string): BusRecord[][] => {
    const found = topics.get(topic)
    if (!found) throw new Fault('KAFKA_UNAVAILABLE', `There is no topic ${topic}`)
    return found
  }
  const append = ({ topic, partition, key, value, headers }: Produced): void => {
    const partitions = partitionsOf(topic)
    const metadata = partitions.map((_, id) => ({ partitionId: id, leader: 1, partitionErrorCode: 0, replicas: [], isr: [] }))
    const at = partition ?? choose({ topic, partitionMetadata: metadata, message: { key, value } })
    const list = partitions[at]
    if (!list) throw new Fault('KAFKA_UNAVAILABLE', `There is no partition ${at} of ${topic}`)
    const text = Object.fromEntries(Object.entries(headers).map(([name, header]) => [name, header.toString()]))
    list.push({ topic, partition: at, offset: list.length, timestamp: Date.now(), key: key.toString(), value: value ?? Buffer.alloc(0), headers: text })
  }

  class MemoryConsumer implements Consumer {
    generation = 0
    assigned: readonly TopicPartition[] = []
    readonly groupId: string
    readonly #options: ConsumerOptions
    readonly #self = Symbol('consumer')
    readonly #positions = new Map<string, number>()
    readonly #paused = new Set<string>()

    constructor(options: ConsumerOptions) {
      this.#options = options
      this.groupId = options.groupId
      consumers.set(options.instance, this.#self)
      readers.add(this)
    }

    async assign(): Promise<void> {
      this.generation += 1
      const all = [...this.#options.topics, ...(this.#options.backlog ?? [])].flatMap((topic) => partitionsOf(topic).map((_, partition) => ({ topic, partition })))
      const positions = (await this.#options.startAt?.(all, new AbortController().signal)) ?? all.map((place) => ({ ...place, offset: whereCommitted }))
      this.assigned = all
      await this.seek(positions)
    }

    check(): void {
      if (consumers.get(this.#options.instance) !== this.#self) throw fenced(`consumer named ${this.#options.instance}`)
    }

    async poll({ lane, limit }: PollLimits): Promise<BusRecord[]> {
      this.check()
      if (this.generation === 0) {
        await this.assign()
        return []
      }
      const records = this.#next((topic) => this.#options.topics.includes(topic) === (lane === 'live'), limit)
      if (records.length === 0) await sleep(1)
      return records
    }

    #next(isWanted: (topic: string) => boolean, limit: number): BusRecord[] {
      const records: BusRecord[] = []
      for (const place of this.assigned) {
        if (!isWanted(place.topic) || this.#paused.has(placeOf(place))) continue
        const at = this.#positions.get(placeOf(place)) ?? 0
        const taken = (partitionsOf(place.topic)[place.partition] ?? []).slice(at, at + limit - records.length)
        this.#positions.set(placeOf(place), at + taken.length)
        records.push(...taken)
      }
      return records
    }

    async seek(positions: readonly Position[]): Promise<void> {
      for (const position of positions) {
        const stored = committed.get(this.groupId)?.get(placeOf(position)) ?? 0
        this.#positions.set(placeOf(position), position.offset < 0 ? stored : position.offset)
      }
    }

    pause(partitions: readonly TopicPartition[]): void {
      for (const place of partitions) this.#paused.add(placeOf(place))
    }

    resume(partitions: readonly TopicPartition[]): void {
      for (const place of partitions) this.#paused.delete(placeOf(place))
    }

    async committed(): Promise<Position[]> {
      this.check()
      return this.assigned.map((place) => ({ ...place, offset: committed.get(this.groupId)?.get(placeOf(place)) ?? 0 }))
    }

    lag(positions: ReadonlyMap<string, number>): Map<string, number> {
      const lags = new Map<string, number>()
      for (const place of this.assigned) {
        const end = partitionsOf(place.topic)[place.partition]?.length ?? 0
        lags.set(place.topic, (lags.get(place.topic) ?? 0) + end - (positions.get(placeOf(place)) ?? 0))
      }
      return lags
    }

    endOf({ topic, partition }: TopicPartition): number | undefined {
      return partitionsOf(topic)[partition]?.length
    }

    async close(): Promise<void> {
      readers.delete(this)
    }
  }

  const openProducer = async (transactionalId: string): Promise<Producer> => {
    const self = Symbol('producer')
    producers.set(transactionalId, self)
    const check = (): void => {
      if (producers.get(transactionalId) !== self) throw fenced(`producer named ${transactionalId}`)
    }
    let isBroken = false
    return {
      async transact(records, offsets, consumer, onStep: OnStep = () => {}) {
        if (isBroken) throw new Fault('INTERNAL', 'A producer is not used again after an error')
        check()
        await onStep('begun')
        await onStep('produced')
        if (consumer && offsets.length > 0) (consumer as MemoryConsumer).check()
        await onStep('offsets sent')
        check()
        const fate = bus.fate(transactionalId)
        if (fate !== 'not done') {
          for (const record of records) append(record)
          if (consumer) {
            const { groupId } = consumer as MemoryConsumer
            const group = committed.get(groupId) ?? new Map<string, number>()
            committed.set(groupId, group)
            for (const position of offsets) group.set(placeOf(position), position.offset)
          }
        }
        if (fate !== 'answered') {
          isBroken = true
          throw new Fault('KAFKA_UNAVAILABLE', 'No answer came to a commit')
        }
        await onStep('committed')
      },
      discard: async () => {},
    }
  }

  const bus: MemoryBus = {
    fate: () => 'answered',
    createTopic: (topic, partitions) =>
      void topics.set(
        topic,
        Array.from({ length: partitions }, () => []),
      ),
    send: (records) => records.forEach(append),
    rebalance: async () => {
      for (const reader of readers) await reader.assign()
    },
    connectConsumer: async (options) => new MemoryConsumer(options),
    openProducer,
    async *readTopic(_name, topic, signal, wanted) {
      for (const [partition, list] of partitionsOf(topic).entries()) {
        if (wanted && !wanted.includes(partition)) continue
        for (const record of [...list]) {
          signal.throwIfAborted()
          yield record
        }
      }
    },
    isFenced: (thrown) => thrown instanceof Fault && thrown.code === 'PRODUCER_FENCED',
  }
  return bus
}
