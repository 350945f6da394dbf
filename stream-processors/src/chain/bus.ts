/**
 * What the runtime of stages needs of a bus: a consumer that hands out committed records in batches, a transactional
 * producer, a bounded read of a topic. Kafka is one (`kafka-bus.ts`), memory another (`memory-bus.ts`), and the same
 * contract tests hold for both (`stage-contract.ts`).
 */
import type { Log } from '@frameloop/kit/log'
import type { Ms } from '@frameloop/kit/units'
import type { BusRecord } from './stage.ts'

export interface TopicPartition {
  readonly topic: string
  readonly partition: number
}
export interface Position extends TopicPartition {
  readonly offset: number
}

export interface Produced {
  readonly topic: string
  /** Absent: chosen from the key by murmur2, as every producer does. */
  readonly partition?: number
  readonly key: string | Buffer
  readonly value: Buffer | null
  readonly headers: Readonly<Record<string, string | Buffer>>
}

/** The steps of a batch, in order. */
export type Step = 'read' | 'worked' | 'begun' | 'produced' | 'offsets sent' | 'committed'
export const steps: readonly Step[] = ['read', 'worked', 'begun', 'produced', 'offsets sent', 'committed']
/** Told of each step as it is done: tests end the process there. */
export type OnStep = (step: Step) => void | Promise<void>

/** Begin where the group stands: for `startAt`. */
export const whereCommitted = -1001

export interface ConsumerOptions {
  readonly groupId: string
  /** Stable name of this instance: a restart takes its partitions back at once, and fences whoever still uses the name. */
  readonly instance: string
  readonly topics: readonly string[]
  /** The backlog: polled by itself; a partition of theirs comes to whoever has the same one of `topics`. */
  readonly backlog?: readonly string[]
  /** For sinks: how long records may gather at the broker, so that what comes one by one is taken and written together. */
  readonly gather?: Ms
  readonly log: Log
  /** Asked with every assignment, before reading begins; the signal says that it holds no longer. */
  readonly startAt?: (assigned: readonly TopicPartition[], signal: AbortSignal) => Promise<readonly Position[]>
}

/** Which of a consumer's topics: those it is there for, or the backlog. */
export type Lane = 'live' | 'backlog'

export interface PollLimits {
  readonly lane: Lane
  /** Records at most. */
  readonly limit: number
  /** How long to wait for the first one. */
  readonly patience: Ms
}

export interface Consumer {
  /** Changes with every assignment; work begun under an older number must be thrown away. */
  readonly generation: number
  readonly assigned: readonly TopicPartition[]
  /** Records of one lane: as soon as there is one, with those that lie ready behind it; an empty batch when nothing came in time. */
  poll(limits: PollLimits): Promise<BusRecord[]>
  seek(positions: readonly Position[]): Promise<void>
  pause(partitions: readonly TopicPartition[]): void
  resume(partitions: readonly TopicPartition[]): void
  /** Where the group stands for good in what is assigned. */
  committed(): Promise<Position[]>
  /** Records between `positions` and the end of each partition, by topic. */
  lag(positions: ReadonlyMap<string, number>): Map<string, number>
  /** Where the end of a partition was seen, behind its last markers; undefined until it was. Records may have come since. */
  endOf(place: TopicPartition): number | undefined
  close(): Promise<void>
}

/** After any error it is not used again: `discard` it and open a new one with the same id. */
export interface Producer {
  /** Publishes all of it and moves the group's offsets, or nothing. */
  transact(records: readonly Produced[], offsets: readonly Position[], consumer: Consumer | undefined, onStep?: OnStep): Promise<void>
  discard(): Promise<void>
}

export interface Bus {
  connectConsumer(options: ConsumerOptions): Promise<Consumer>
  /** Fences whoever used this id before; a transaction they left open is aborted or completed first. */
  openProducer(transactionalId: string, log: Log): Promise<Producer>
  /** Committed records of a topic as it is now, of the partitions named or of all. */
  readTopic(name: string, topic: string, signal: AbortSignal, partitions?: readonly number[]): AsyncGenerator<BusRecord>
  /** Whether another instance with the same name has taken over: then this one must end. */
  isFenced(thrown: unknown): boolean
}
