/**
 * What a stage is: a function from a record to an outcome. It reads nothing but its record, the bytes its record names
 * and, where it needs one, its memory of the camera; it changes nothing itself. `run-stage.ts` does everything else.
 */
import type { Bytes, EpochMs } from '@frameloop/kit/units'
import type { Events } from '@frameloop/schemas/events'
import type { BucketRole } from '@frameloop/schemas/object-keys'
import type { EventName, Topic } from '@frameloop/schemas/topics'
import type { ReasonCode } from './reasons.ts'

/** A record as it lies on the bus. */
export interface BusRecord {
  readonly topic: string
  readonly partition: number
  readonly offset: number
  /** LogAppendTime of the broker. */
  readonly timestamp: EpochMs
  readonly key: string
  /** The key as it came, when it is not text that reads back the same. */
  readonly keyBytes?: Buffer
  readonly value: Buffer
  readonly headers: Readonly<Record<string, string>>
}

export interface Incoming<Name extends EventName> {
  readonly event: Events[Name]
  readonly record: BusRecord
}

/** Something to publish. */
export type Output = {
  [Name in EventName]: { readonly topic: Topic<Name>; readonly event: Events[Name]; readonly key: string; readonly id: string; readonly time: EpochMs }
}[EventName]

/** Something to store before anything is published. */
export interface ObjectToPut {
  readonly role: BucketRole
  readonly key: string
  readonly body: Uint8Array
  readonly sha256: string
  readonly contentType: string
  readonly metadata: Readonly<Record<string, string>>
}

export type Outcome =
  | { readonly kind: 'emit'; readonly outputs: readonly Output[]; readonly puts?: readonly ObjectToPut[] }
  /** This record is wrong: it goes to the dead letters, with a code that docs and metrics know. */
  | { readonly kind: 'reject'; readonly reason: ReasonCode; readonly message: string; readonly puts?: readonly ObjectToPut[] }
  /** The world is wrong: ask again. */
  | { readonly kind: 'retry'; readonly cause: unknown }

export interface StageContext {
  /** The bytes of an object. A missing one is asked for again a few times, then the record is rejected. */
  readonly fetch: (object: { readonly bucket: string; readonly key: string; readonly bytes: Bytes }) => Promise<Buffer>
  readonly now: () => EpochMs
  readonly signal: AbortSignal
}

export interface Stage<Name extends EventName = EventName> {
  readonly name: string
  /** Part of every output and of the dead letters' headers. */
  readonly version: string
  readonly inputs: readonly Topic<Name>[]
  /** Taken only while `inputs` have nothing. As many partitions as they have. */
  readonly backlog?: readonly Topic<Name>[]
  readonly outputs: readonly Topic[]
  /** Records taken at a time, where one of them can take seconds. */
  readonly batch?: number
  /** Runs for many records at once; the order of outputs is the order of records all the same. A `Fault` whose code is a reason rejects the record. */
  work(incoming: Incoming<Name>, context: StageContext): Outcome | Promise<Outcome>
  /** The stage's memory of earlier records, kept per key in a compacted changelog inside the same transaction. */
  readonly memory?: StageMemory<Name>
}

/** Decides in order, one record after the other, with what is remembered of this key. */
export interface StageMemory<Name extends EventName> {
  readonly keyOf: (event: Events[Name]) => string
  /** What was remembered (JSON), or undefined the first time; gives the final outcome and what to remember. */
  readonly judge: (incoming: Incoming<Name>, worked: Outcome, remembered: unknown) => { readonly outcome: Outcome; readonly remember: unknown }
}
