/**
 * The one loop that runs every stage.
 *
 *   poll a batch ─▶ decode + work + put objects (many at once) ─▶ judge with memory (in order) ─▶ ┌ transaction ┐ ─▶ judge …
 *                                                                                                 │ outputs      │
 *                   the next batch is polled and worked on while this one is committed,           │ dead letters │
 *                   a batch of the backlog while live ones go by: nobody sees either before       │ memory       │
 *                   its transaction, so both may be thrown away                                   │ offsets      │
 *                                                                                                 └──────────────┘
 * R1  Outputs, dead letters, memory and offsets are one transaction: all of them or none.
 * R2  A transaction holds no other I/O: objects are put before it begins, under keys that make a repeat harmless.
 * R3  After any failure inside a transaction its outcome counts as unknown: the producer is thrown away, a new one with the
 *     same id settles what was open, memory is read again, and reading goes on from the committed offsets.
 * R4  The order of outputs is the order of the records, however they were worked on.
 * R5  A record that must wait holds back its partition only; the others go on.
 * R6  A record that kills the process is found, and becomes a dead letter (`attempts.ts`).
 * R7  A batch is as large as what gets done in 100 ms: transactions cost per piece, and waiting for one costs latency.
 * R8  A batch of the backlog is begun only while there is nothing live, and worked on beside it. While live records come at
 *     all, that is done two at a time, and the backlog rests three times as long as it worked.
 * R9  Objects in hand are bounded in bytes, as they were announced; one that is longer than that is not read to its end.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault, rootMessage, toError } from '@frameloop/kit/fault'
import { Lifetime, ProcessFailed } from '@frameloop/kit/lifetime'
import type { Log } from '@frameloop/kit/log'
import { type Metrics, stageMetrics } from '@frameloop/kit/metrics'
import { isStoreTransient, type ObjectStore } from '@frameloop/kit/object-store'
import { backoffPause } from '@frameloop/kit/retry'
import type { Bytes, EpochMs, Ms } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import { bucketName } from '@frameloop/schemas/object-keys'
import type { EventName, Topic } from '@frameloop/schemas/topics'
import { childTraceparent } from '@frameloop/schemas/trace'
import { Attempts } from './attempts.ts'
import { type Bus, type Lane, type OnStep, type Position, type Produced, type TopicPartition, whereCommitted } from './bus.ts'
import { ByteBudget } from './byte-budget.ts'
import { deadLetterOf } from './dead-letters.ts'
import { Memory } from './memory.ts'
import { isReason } from './reasons.ts'
import type { BusRecord, Incoming, Outcome, Stage, StageContext } from './stage.ts'

export interface StageTools {
  readonly bus: Bus
  /** Stable name of this instance, unique among those of the stage. */
  readonly instance: string
  readonly codec: Codec
  readonly store: ObjectStore
  readonly bucketPrefix: string
  readonly log: Log
  readonly metrics: Metrics
  readonly onStep?: OnStep
  /** How long to wait for the world, at first and at most; shorter in tests. */
  readonly waitBackoff?: { readonly first: Ms; readonly cap: Ms }
}

/** Records of the first batch; later ones follow R7. */
const firstBatch = 128
/** A live record may wait for one commit of the backlog, so those are small. */
const aims = { live: { time: 100, least: 16 }, backlog: { time: 100, least: 8 } } as const
const firstLimits = { live: firstBatch, backlog: 16 }
const mostBatch = 1_024
/** Values of one batch, beyond what a single record takes. */
const batchBytes: Bytes = 16_000_000
const workLimit = 12
/** Records of the backlog worked on at once while live ones come: each of them may be what a live one waits for. */
const politeLimit = 2
/** Of a record on a live topic (`provision.ts`) and on a topic of dead letters (`sending`), less what the broker puts around it. */
const mostOutput: Bytes = 7_900_000
const mostLetter: Bytes = 8_900_000
/** R9: of all records together. */
const objectBytes: Bytes = 256_000_000
/** R9: what is said to be shorter is read so far all the same, so that a stage can tell what was wrong with it, and keep it. */
const alwaysRead: Bytes = 8_000_000
/** How long to wait for a record before looking around. */
const pollPatience: Ms = 200
/** A missing object may still be on its way; after this many tries it is missing. */
const missingTries = 5
/** So often a consumer may not answer where a producer does. */
const unheardLimit = 5
const usualBackoff = { first: 250, cap: 10_000 }

/** What the work on one record gets, and has in hand. */
class RecordContext implements StageContext {
  readonly signal: AbortSignal
  readonly #store: ObjectStore
  readonly #budget: ByteBudget
  #held: Bytes = 0
  /** Its place in the budget: one for all that the record fetches, or it would wait for others that wait for it. */
  #place: Promise<void> | undefined

  constructor(store: ObjectStore, budget: ByteBudget, signal: AbortSignal) {
    this.#store = store
    this.#budget = budget
    this.signal = signal
  }

  readonly fetch: StageContext['fetch'] = async ({ bucket, key, bytes }) => {
    if (this.#held === 0 && bytes > 0) {
      this.#held = bytes
      this.#place = this.#budget.take(bytes)
    }
    await this.#place
    this.signal.throwIfAborted()
    return this.#store.get(bucket, key, this.signal, Math.max(bytes, alwaysRead))
  }

  now(): EpochMs {
    return Date.now()
  }

  /** The work is done: nothing is in hand any more, once there was. */
  end(): void {
    const held = this.#held
    if (held === 0) return
    if (this.#place !== undefined) void this.#place.then(() => this.#budget.give(held))
    else this.#budget.give(held)
    this.#held = 0
  }
}

/** Errors that say nothing about a record: others are away, or this machine has no room, no more processes, or not the program. */
const worldly: ReadonlySet<string> = new Set([
  ...['REGISTRY_UNAVAILABLE', 'OBJECT_STORE_UNAVAILABLE', 'TOOL_MISSING'],
  ...['ENOSPC', 'EDQUOT', 'EROFS', 'EMFILE', 'ENFILE', 'EAGAIN', 'ENOMEM'],
])

function sizeOf({ key, value, headers }: Produced): Bytes {
  let size = (value?.length ?? 0) + Buffer.byteLength(key)
  for (const name in headers) size += name.length + Buffer.byteLength(headers[name] as string | Buffer)
  return size
}

type Worked = { readonly record: BusRecord; readonly incoming?: Incoming<EventName>; readonly outcome: Outcome }

/** Runs `act` over `items`, at most `limit` at a time, and keeps their order. */
export async function inOrder<Item, Result>(items: readonly Item[], limit: number, act: (item: Item) => Result | Promise<Result>): Promise<Result[]> {
  const results: Result[] = new Array(items.length)
  let next = 0
  const worker = async (): Promise<void> => {
    for (let at = next++; at < items.length; at = next++) {
      const result = act(items[at] as Item)
      results[at] = result instanceof Promise ? await result : result
    }
  }
  await Promise.all(Array.from({ length: Math.min(limit, items.length) }, worker))
  return results
}

/** The records whose outcome can be published now: each partition up to its first one that must wait. */
export function cutAtWaiting(worked: readonly Worked[]): { readonly settled: readonly Worked[]; readonly waiting: readonly Position[] } {
  if (!worked.some(({ outcome }) => outcome.kind === 'retry')) return { settled: worked, waiting: [] }
  const waiting = new Map<string, Position>()
  const settled: Worked[] = []
  for (const item of worked) {
    const { topic, partition, offset } = item.record
    const key = `${topic} ${partition}`
    if (waiting.has(key)) continue
    if (item.outcome.kind === 'retry') waiting.set(key, { topic, partition, offset })
    else settled.push(item)
  }
  return { settled, waiting: [...waiting.values()] }
}

/** One past the last settled record of each partition. */
export function nextOffsets(records: readonly BusRecord[]): Position[] {
  const next = new Map<string, Position>()
  for (const { topic, partition, offset } of records) next.set(`${topic} ${partition}`, { topic, partition, offset: offset + 1 })
  return [...next.values()]
}

/** R7: how many records to take next, after `taken` of `bytes` in all took `took`; at most twice and at least half as many as now. */
export function nextLimit(limit: number, taken: number, bytes: Bytes, took: Ms, lane: Lane = 'live'): number {
  const { time, least } = aims[lane]
  const ranDry = taken < limit && took < time
  const inTime = ranDry ? limit : Math.round((taken * time) / Math.max(1, took))
  const inBytes = Math.floor(batchBytes / Math.max(1, bytes / taken))
  return Math.max(1, Math.min(inBytes, mostBatch, Math.max(least, limit >> 1, Math.min(inTime, limit * 2))))
}

/** A batch in hand. */
interface Taken {
  readonly generation: number
  readonly records: readonly BusRecord[]
  /** Begun already. */
  readonly worked?: Promise<Worked[]>
  /** Of a batch of the backlog that is worked on while live ones go by: how long that took, once it is done. */
  took?: Ms
}

export interface RunningStage {
  /** Why the stage cannot work now, or undefined. */
  readonly notReady: () => string | undefined
}

/** Runs the stage until the signal; ends with an error when it was fenced. */
export function startStage<Name extends EventName>(stage: Stage<Name>, tools: StageTools): RunningStage & { readonly run: (signal: AbortSignal) => Promise<void> } {
  const { bus, log, onStep = () => {}, waitBackoff = usualBackoff } = tools
  const metrics = stageMetrics(tools.metrics)
  const seconds = metrics.seconds.labels(stage.name)
  const backlog = stage.backlog ?? []
  const eventOf = new Map<string, Topic<Name>>([...stage.inputs, ...backlog].map((topic) => [topic.name, topic]))
  const laneOf = (records: readonly BusRecord[]): Lane => (backlog.some(({ name }) => name === records[0]?.topic) ? 'backlog' : 'live')
  const attempts = new Map<string, number>()
  const positions = new Map<string, number>()
  let state = 'starting'

  /** What an error comes to: a reason of the record's own, a world that must be waited for, or a bug that must not stop the others. */
  const failed = (record: BusRecord, thrown: unknown, context: RecordContext): Worked => {
    if (context.signal.aborted) {
      context.end()
      throw thrown
    }
    const { code } = thrown as { code?: string }
    if (code === 'OBJECT_MISSING') {
      const id = `${record.topic} ${record.partition} ${record.offset}`
      const tried = (attempts.get(id) ?? 0) + 1
      attempts.set(id, tried)
      if (tried >= missingTries) return { record, outcome: { kind: 'reject', reason: code, message: toError(thrown).message } }
      return { record, outcome: { kind: 'retry', cause: thrown } }
    }
    if ((code !== undefined && worldly.has(code)) || (code === undefined && (thrown as { $metadata?: unknown }).$metadata !== undefined && isStoreTransient(thrown))) {
      return { record, outcome: { kind: 'retry', cause: thrown } }
    }
    if (isReason(code)) return { record, outcome: { kind: 'reject', reason: code, message: toError(thrown).message } }
    log.error({ err: thrown, topic: record.topic, partition: record.partition, offset: record.offset }, 'stage failed on a record')
    return { record, outcome: { kind: 'reject', reason: 'INTERNAL', message: rootMessage(thrown) } }
  }

  /** At once where nothing must be waited for: thousands of small records a second make thousands of promises otherwise. */
  const work = (record: BusRecord, context: RecordContext): Worked | Promise<Worked> => {
    const topic = eventOf.get(record.topic)
    if (!topic) throw new Fault('INTERNAL', `${stage.name} received a record of ${record.topic}`)
    if (record.headers['fl-effects'] === 'none')
      return { record, outcome: { kind: 'reject', reason: 'REPLAYED', message: `A copy of replay ${record.headers['fl-replay-id']} came on a live topic` } }
    const since = performance.now()
    const ended = (worked: Worked): Worked | Promise<Worked> => {
      seconds.observe((performance.now() - since) / 1000)
      if (worked.outcome.kind !== 'retry' && worked.outcome.puts) return store(worked, context.signal).finally(() => context.end())
      context.end()
      return worked
    }
    const workOn = (event: Incoming<Name>['event']): Worked | Promise<Worked> => {
      const incoming: Incoming<Name> = { event, record }
      const of = (outcome: Outcome): Worked | Promise<Worked> => ended({ record, incoming: incoming as unknown as Incoming<EventName>, outcome })
      const outcome = stage.work(incoming, context)
      return outcome instanceof Promise ? outcome.then(of) : of(outcome)
    }
    try {
      const event = tools.codec.decode(topic.event, record.value)
      const worked = event instanceof Promise ? event.then(workOn) : workOn(event)
      return worked instanceof Promise ? worked.catch((thrown: unknown) => ended(failed(record, thrown, context))) : worked
    } catch (thrown) {
      return ended(failed(record, thrown, context))
    }
  }

  /** R2. What could not be stored yet must wait; what lies there with other bytes is refused. */
  const store = async (worked: Worked, signal: AbortSignal): Promise<Worked> => {
    const { outcome } = worked
    if (outcome.kind === 'retry' || !outcome.puts) return worked
    // held no longer than needed: the pictures of a clip are many
    const { puts, ...stored } = outcome
    try {
      for (const { role, ...put } of puts) await tools.store.putOnce({ bucket: bucketName(tools.bucketPrefix, role), ...put }, signal)
      return { ...worked, outcome: stored }
    } catch (thrown) {
      const isConflict = thrown instanceof Fault && thrown.code === 'OBJECT_CONFLICT'
      if (!isConflict && isStoreTransient(thrown)) return { ...worked, outcome: { kind: 'retry', cause: thrown } }
      // a rejected record keeps its own reason, whatever lies in quarantine already or cannot lie there
      return { ...worked, outcome: stored.kind === 'reject' ? stored : { kind: 'reject', reason: isConflict ? 'OBJECT_CONFLICT' : 'OUTPUT_INVALID', message: rootMessage(thrown) } }
    }
  }

  const deadLetter = async (record: BusRecord, reason: string, message: string): Promise<Produced> => {
    metrics.rejected.inc({ stage: stage.name, reason })
    log.warn({ topic: record.topic, partition: record.partition, offset: record.offset, reason, detail: message }, 'record rejected')
    const tries = attempts.get(`${record.topic} ${record.partition} ${record.offset}`) ?? 1
    const letter = deadLetterOf(record, { stage: stage.name, stageVersion: stage.version, reason, message, attempts: tries })
    if (sizeOf(letter) <= mostLetter) return letter
    // what came compressed may be more than goes out again: all of it is kept where refused content is
    const { topic, partition, offset } = record
    const body = Buffer.from(JSON.stringify({ key: record.key, headers: record.headers, value: record.value.toString('base64') }))
    const sha256 = sha256Hex(body)
    const place = { bucket: bucketName(tools.bucketPrefix, 'quarantine'), key: `dead-letters/${topic}/${partition}/${offset}-${sha256.slice(0, 8)}.json` }
    await tools.store.putOnce({ ...place, body, sha256, contentType: 'application/json' })
    const ours = Object.fromEntries(Object.entries(letter.headers).filter(([name]) => name.startsWith('fl-')))
    return { ...letter, key: record.key.slice(0, 200), value: Buffer.alloc(0), headers: { ...ours, 'fl-value': `${place.bucket}/${place.key}` } }
  }

  /** A record's final outcome, with what is remembered of its key; asked once more, it is judged again from where it stood. */
  const judgeOf = ({ record, incoming }: Worked, memory: Memory | undefined): ((outcome: Outcome) => Outcome) => {
    if (!stage.memory || !memory || !incoming) return (outcome) => outcome
    const { keyOf, judge } = stage.memory
    const own = incoming as unknown as Incoming<Name>
    const key = keyOf(own.event)
    const before = memory.get(record.partition, key)
    return (worked) => {
      const { outcome, remember } = judge(own, worked, before)
      memory.set(record.partition, key, remember)
      return outcome
    }
  }

  /** Judges in order, and encodes what comes out; undefined when memory has become another one's meanwhile. */
  const outputsOf = async (worked: readonly Worked[], memory: Memory | undefined, isCurrent: () => boolean): Promise<Produced[] | undefined> => {
    const produced: Produced[] = []
    const emitted = new Map<string, number>()
    for (const item of worked) {
      // memory was read anew with an assignment that came meanwhile, and knows nothing of what is thrown away here
      if (!isCurrent()) return undefined
      const { record } = item
      const judge = judgeOf(item, memory)
      const outcome = judge(item.outcome)
      if (outcome.kind === 'reject') produced.push(await deadLetter(record, outcome.reason, outcome.message))
      else if (outcome.kind === 'emit') {
        const traceparent = childTraceparent(record.headers['traceparent'])
        try {
          const outputs: Produced[] = []
          for (const { topic, event, key, id, time } of outcome.outputs) {
            const encoded = recordOf(tools.codec, topic, event, { key, id, time, source: stage.name, traceparent })
            const { value, headers } = encoded instanceof Promise ? await encoded : encoded
            const output = { topic: topic.name, key, value, headers }
            if (sizeOf(output) > mostOutput) throw new Fault('OUTPUT_INVALID', `What comes out is ${sizeOf(output)} bytes, a record holds ${mostOutput} at most`)
            outputs.push(output)
          }
          produced.push(...outputs)
          for (const { topic } of outputs) emitted.set(topic, (emitted.get(topic) ?? 0) + 1)
          for (const { event } of outcome.outputs) if ('marks' in event) for (const mark of event.marks) metrics.marked.inc({ stage: stage.name, mark })
        } catch (thrown) {
          // a registry that is away, or holds another schema than ours: that is for somebody to mend, and no word about this record
          if (thrown instanceof Fault && ['REGISTRY_UNAVAILABLE', 'SCHEMA_INCOMPATIBLE'].includes(thrown.code)) throw thrown
          if (!isCurrent()) return undefined
          // what a stranger sent can pass a stage and still not be written: a time that is none, a text where a number belongs.
          // It is remembered as refused: what was seen and let through is not let through again when somebody sends it again
          const refused = { kind: 'reject', reason: 'OUTPUT_INVALID', message: rootMessage(thrown) } as const
          judge(refused)
          produced.push(await deadLetter(record, refused.reason, refused.message))
        }
      }
    }
    for (const [topic, count] of emitted) metrics.emitted.inc({ stage: stage.name, topic }, count)
    return produced
  }

  const run = async (signal: AbortSignal): Promise<void> => {
    const memory = stage.memory ? new Memory(bus, stage.name) : undefined
    const notes = new Attempts(bus, stage.name)
    const groupId = `frameloop.${stage.name}`
    const consumer = await bus.connectConsumer({
      groupId,
      instance: `${groupId}.${tools.instance}`,
      topics: stage.inputs.map(({ name }) => name),
      backlog: backlog.map(({ name }) => name),
      log,
      startAt: async (assigned, taking) => {
        // whatever was in flight under the old assignment is thrown away, so memory is read as it was committed
        memory?.clear()
        await memory?.load(assigned, AbortSignal.any([signal, taking]))
        return assigned.map((partition) => ({ ...partition, offset: whereCommitted }))
      },
    })
    await using opened = new Lifetime()
    opened.own('consumer', consumer, (open) => open.close())
    let producer = await bus.openProducer(`${groupId}.${tools.instance}`, log)
    opened.own('producer', undefined, () => producer.discard())
    // ended as asked, neither killed nor by an exception that a record may have caused; where Kafka is away this start counts as
    // a death, which only costs caution
    const isAsked = (): boolean => signal.aborted && !(signal.reason instanceof ProcessFailed)
    opened.own('notes', undefined, () => (isAsked() ? producer.transact(notes.end(consumer.assigned), [], undefined).catch(() => {}) : undefined))
    const paused = new Map<string, { readonly position: Position; readonly until: EpochMs; readonly tries: number; readonly generation: number }>()
    const isAssigned = (of: TopicPartition): boolean => consumer.assigned.some(({ topic, partition }) => topic === of.topic && partition === of.partition)

    const recover = async (): Promise<void> => {
      let unheard = 0
      for (let attempt = 1; ; attempt += 1) {
        await producer.discard()
        let isThere = false
        try {
          producer = await bus.openProducer(`${groupId}.${tools.instance}`, log)
          isThere = true
          // a change of the assignment is told to those who read; what comes with it is read again
          await consumer.poll({ lane: 'live', limit: 1, patience: 10 })
          memory?.clear()
          await memory?.load(consumer.assigned, signal)
          if (consumer.assigned.length > 0) await consumer.seek(await consumer.committed())
          consumer.resume([...paused.values()].map(({ position }) => position).filter(isAssigned))
          paused.clear()
          return
        } catch (thrown) {
          if (isThere) unheard += 1
          // Kafka answers, and this consumer does not hear from it any more: the next process has another one
          if (signal.aborted || bus.isFenced(thrown) || unheard === unheardLimit) throw thrown
          log.warn({ err: thrown, attempt }, 'recovery waits for Kafka')
          await sleep(backoffPause(attempt, waitBackoff, Math.random()), undefined, { signal })
        }
      }
    }

    // a clip of the backlog takes no live frame's turn
    const budgets = { live: new ByteBudget(objectBytes), backlog: new ByteBudget(objectBytes) }
    let limits: Readonly<Record<Lane, number>> = firstLimits
    let liveAt = Number.NEGATIVE_INFINITY
    const isLiveFlowing = (): boolean => performance.now() - liveAt < 1_000
    /** Until then the backlog rests (R8). */
    let restsUntil = 0
    let behind: Taken | undefined
    /** Partitions of which records have come since they were assigned: their beginnings are noted (R6). */
    let noted = { generation: -1, places: new Set<string>() }
    const placeOf = ({ topic, partition }: TopicPartition): string => `${topic} ${partition}`
    const isNoted = (records: readonly BusRecord[]): boolean => noted.generation === consumer.generation && records.every((record) => noted.places.has(placeOf(record)))
    const poll = async (lane: Lane, patience: Ms): Promise<Taken> => {
      const { generation } = consumer
      const limit = Math.min(limits[lane], notes.suspects ? 1 : (stage.batch ?? mostBatch))
      return { generation, records: await consumer.poll({ lane, limit, patience }) }
    }
    const begin = (records: readonly BusRecord[], limit = workLimit): Promise<Worked[]> => {
      metrics.received.inc({ stage: stage.name }, records.length)
      const budget = budgets[laneOf(records)]
      const working = inOrder(records, limit, (record) => work(record, new RecordContext(tools.store, budget, signal)))
      // it may be thrown away before anybody waits for it
      working.catch(() => {})
      return working
    }
    /** R8, unless a batch is under way already. */
    const beginBehind = async (): Promise<void> => {
      if (backlog.length === 0 || behind || performance.now() < restsUntil) return
      const taken = await poll('backlog', 1)
      if (taken.records.length === 0) return
      // nothing is worked on before its beginning is noted
      if (taken.generation !== consumer.generation || !isNoted(taken.records)) {
        behind = { ...taken, took: 0 }
        return
      }
      const since = performance.now()
      const worked = begin(taken.records, isLiveFlowing() ? politeLimit : workLimit)
      const begun: Taken = { ...taken, worked }
      const done = (): void => {
        begun.took = performance.now() - since
      }
      worked.then(done, done)
      behind = begun
    }
    const next = async (): Promise<Taken> => {
      if (behind?.took !== undefined) return behind
      const rest = Math.max(0, restsUntil - performance.now())
      if (backlog.length > 0 && !behind && rest === 0) {
        // waiting for live records first would let the backlog starve: there is always another one soon
        const live = await poll('live', 1)
        if (live.records.length > 0) return live
        if (notes.suspects) {
          const alone = await poll('backlog', 1)
          if (alone.records.length > 0) return alone
        } else await beginBehind()
      }
      return poll('live', behind ? 5 : rest > 0 ? Math.min(Math.ceil(rest), pollPatience) : pollPatience)
    }
    /** While the batch before it is being committed. */
    const takeAhead = async (): Promise<Taken> => {
      const taken = await poll('live', backlog.length > 0 ? 1 : pollPatience)
      if (taken.records.length === 0) await beginBehind()
      else if (taken.generation === consumer.generation && isNoted(taken.records)) return { ...taken, worked: begin(taken.records) }
      return taken
    }

    const wakePaused = async (): Promise<void> => {
      for (const [key, { position, until, generation }] of paused) {
        // with an assignment it is read again from what is committed, and the bus has ended its pause
        const isPaused = isAssigned(position) && generation === consumer.generation
        if (!isPaused) paused.delete(key)
        if (Date.now() < until || !isPaused) continue
        await consumer.seek([position])
        consumer.resume([position])
        paused.set(key, { position, until: Number.POSITIVE_INFINITY, tries: paused.get(key)?.tries ?? 1, generation })
      }
    }

    /** Notes where reading begins in the partitions of these records; false when they must be read again, one at a time. */
    const noteBeginning = async (records: readonly BusRecord[]): Promise<boolean> => {
      if (noted.generation !== consumer.generation) {
        noted = { generation: consumer.generation, places: new Set() }
        await notes.load(signal)
      }
      const committed = await consumer.committed()
      // where nothing comes, nothing kills: an idle partition begins at the same offset for years
      const here = new Set(records.map(placeOf))
      const fresh = committed.filter((position) => here.has(placeOf(position)) && !noted.places.has(placeOf(position)))
      await producer.transact(notes.begin(fresh), [], undefined)
      for (const place of here) noted.places.add(place)
      if (!notes.suspects || records.length <= 1) return true
      log.warn({ stage: stage.name }, 'this stage died too often where it begins: records are worked on one at a time')
      await consumer.seek(committed)
      return false
    }
    /** What the only record in hand comes to when it has killed the process too often, after noting that it is tried. */
    const tryAlone = async (record: BusRecord): Promise<Worked | undefined> => {
      const decided = notes.before(record)
      if (decided.giveUp) return { record, outcome: { kind: 'reject', reason: 'PROCESS_KILLED', message: `The process of ${stage.name} died each time it worked on this record` } }
      await producer.transact([decided.produced], [], undefined)
      return undefined
    }

    let lagAt = 0
    let failures = 0
    let ahead: Taken | undefined
    while (!signal.aborted) {
      await wakePaused()
      if (Date.now() - lagAt > 1_000) {
        lagAt = Date.now()
        for (const [topic, lag] of consumer.lag(positions)) metrics.lag.set({ stage: stage.name, topic }, lag)
      }
      const taken = ahead ?? (await next())
      ahead = undefined
      if (taken === behind) behind = undefined
      const { generation, records } = taken
      const since = performance.now()
      state = consumer.assigned.length > 0 ? '' : 'waiting for partitions'
      if (consumer.generation !== generation) {
        // some of them may belong to partitions that are somebody else's by now; what else is in hand is read again with them
        behind = undefined
        if (records.length > 0 && consumer.assigned.length > 0) await consumer.seek(await consumer.committed())
        continue
      }
      if (records.length === 0) continue
      let taking: Promise<Taken> | undefined
      try {
        if (!isNoted(records) && !(await noteBeginning(records))) {
          behind = undefined
          continue
        }
        await onStep('read')
        const isAlone = notes.suspects
        const givenUp = isAlone && records[0] ? await tryAlone(records[0]) : undefined
        const worked = givenUp ? [givenUp] : await (taken.worked ?? begin(records))
        await onStep('worked')
        const isCurrent = (): boolean => consumer.generation === generation
        if (!isCurrent()) continue
        const { settled, waiting: blocked } = cutAtWaiting(worked)
        if (settled.length > 0) {
          // what comes after a record that waits must not be taken before it
          taking = blocked.length === 0 && !isAlone ? takeAhead() : undefined
          taking?.catch(() => {})
          const outputs = await outputsOf(settled, memory, isCurrent)
          if (!outputs || !isCurrent()) {
            ahead = await taking
            continue
          }
          const produced = [...outputs, ...(memory?.changes() ?? [])]
          // work that was cut short by our own end is no verdict on a record
          if (signal.aborted) return
          const offsets = nextOffsets(settled.map(({ record }) => record))
          const committing = producer.transact(produced, offsets, consumer, onStep).then(() => performance.now() - since)
          // awaited below, whatever happens before
          committing.catch(() => {})
          ahead = await taking
          const took = await committing
          failures = 0
          const bytes = records.reduce((sum, { value }) => sum + value.length, 0)
          const lane = laneOf(records)
          const workedFor = taken.took ?? took
          limits = { ...limits, [lane]: nextLimit(limits[lane], records.length, bytes, workedFor, lane) }
          if (lane === 'live') liveAt = performance.now()
          else if (isLiveFlowing()) restsUntil = performance.now() + 3 * workedFor
          if (isAlone) {
            // the batch that killed the process began at most this far on
            const cleared = notes.passed(2 * firstBatch)
            if (cleared.length > 0) await producer.transact(cleared, [], undefined)
          }
          for (const { topic, partition, offset } of offsets) {
            positions.set(`${topic} ${partition}`, offset)
            paused.delete(`${topic} ${partition}`)
          }
          if (attempts.size > 0) for (const { record } of settled) attempts.delete(`${record.topic} ${record.partition} ${record.offset}`)
        }
        for (const position of blocked) {
          const key = `${position.topic} ${position.partition}`
          const tries = (paused.get(key)?.tries ?? 0) + 1
          const pause = backoffPause(tries, waitBackoff, Math.random())
          if (tries === 1) {
            const cause = worked.find(({ outcome }) => outcome.kind === 'retry')?.outcome
            log.warn({ ...position, pause, err: cause?.kind === 'retry' ? cause.cause : undefined }, 'partition waits')
          }
          metrics.blockedSeconds.inc({ stage: stage.name }, pause / 1000)
          consumer.pause([position])
          paused.set(key, { position, until: Date.now() + pause, tries, generation: consumer.generation })
        }
      } catch (thrown) {
        if (signal.aborted) return
        if (bus.isFenced(thrown)) throw new Fault('PRODUCER_FENCED', `Another instance of ${stage.name} named ${tools.instance} took over`, { stage: stage.name }, thrown)
        log.warn({ err: thrown }, 'transaction given up, reading again from what is committed')
        state = 'recovering'
        // what is still being taken must not come after the positions have been set back
        await taking?.catch(() => {})
        ahead = undefined
        behind = undefined
        limits = firstLimits
        await recover()
        failures += 1
        if (failures > 1) await sleep(backoffPause(failures, waitBackoff, Math.random()), undefined, { signal }).catch(() => {})
      }
    }
  }
  const ended = (): void => {
    state = 'not running'
  }
  return { run: (signal) => run(signal).finally(ended), notReady: () => state || undefined }
}
