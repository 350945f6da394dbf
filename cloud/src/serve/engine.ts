/**
 * Predictions for everybody who asks, in threads that hold the models.
 * E1  Questions that wait are answered together, and nothing is waited for: a thread that is free takes its share of what is there, so that
 *     the others and the thread with the sockets have something to do meanwhile.
 * E2  How many it takes is learned, for each kind of question: as many as are done in `batchTime`, at most twice as many as
 *     the time before. A large model takes one at a time that way, a small one hundreds.
 * E3  What waits is bounded in bytes and in time: beyond that it is refused at once, with a code that says why.
 * E4  A model that is let go answers first whoever has asked it.
 * E5  A thread that dies fails the questions it had in hand only; another takes its place, with the same models.
 * E6  The thread with the sockets needs a core too: questions of a kind are given to as many threads only as the cores leave, by what
 *     one takes there and here. Small pictures leave one of two cores, large ones both.
 */
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { Fault, toError } from '@frameloop/kit/fault'
import { Rooms } from '@frameloop/kit/rooms'
import type { Bytes, EpochMs, Ms } from '@frameloop/kit/units'
import type { ModelFiles } from '../models/model-files.ts'
import { type EngineName, engineNames } from '../models/predictor.ts'
import type { Answer, Loaded, Order, Question, Refusal, Report, Scored } from './engine-thread.ts'

/**
 * Long enough that what each batch costs is little, short enough that the thread with the sockets has the next one ready: with
 * 10 ms a closed loop of 16 callers left a fifth of two cores idle (measured).
 */
const batchTime: Ms = 3
const firstBatch = 4
const mostBatch = 256
/** With each thread: one it works on and one it finds when that is done. */
const ordersAhead = 2
const restartPause: Ms = 200
/** How often it is measured what a question takes here (E6). A time in which few came says nothing. */
const lookEvery: Ms = 100
const longestLook: Ms = 300
const waitingLimit: Bytes = 64_000_000
/** How long a question may wait where whoever asks does not say. */
export const usualDeadline: Ms = 5_000

export interface Reply {
  readonly scored: readonly Scored[]
  /** Of the batch it was answered in. */
  readonly predictMs: Ms
}

/** The bytes of a question, whole or in the pieces they came in: they are put together once, on their way to a thread. */
export type Pieces = Uint8Array | readonly Uint8Array[]

interface Waiting {
  readonly question: Question
  readonly pieces: readonly Uint8Array[]
  readonly length: Bytes
  readonly deadline: EpochMs
  readonly resolve: (reply: Reply) => void
  readonly reject: (error: Error) => void
}

/** Questions of one kind to one model. */
interface Queue {
  readonly waiting: Waiting[]
  /** E2 */
  limit: number
  /** E6: of a question, in a thread; undefined before the first is answered. */
  cost: Ms | undefined
}

interface Thread {
  readonly worker: Worker
  /** Orders in hand, by id: what happens with their reports, or when there will be none. */
  readonly orders: Map<number, { readonly done: (report: Report) => void; readonly failed: (error: Error) => void }>
  /** Of them those that answer, and how long that should take. */
  batches: number
  due: Ms
  isDead: boolean
}

type WithoutId<One> = One extends Order ? Omit<One, 'id'> : never

const kindOf = (question: Question): string => `${question.kind} ${question.kind === 'zones' ? question.cameraId : question.digest}`
const digestsOf = (question: Question): Iterable<string> => (question.kind === 'zones' ? question.models.values() : [question.digest])

/** E2: how many to take next, after `taken` of a `limit` took `took`. */
export function nextBatch(limit: number, taken: number, took: Ms): number {
  const ranDry = taken < limit && took < batchTime
  const inTime = ranDry ? limit : Math.round((taken * batchTime) / Math.max(0.01, took))
  return Math.max(1, Math.min(mostBatch, Math.max(limit >> 1, Math.min(inTime, limit * 2))))
}

/** E6: how many of `count` threads to use for questions of which each takes `there` in one of them and `here` in the thread with the sockets; all where that is not known. */
export function threadsFor(count: number, there: Ms | undefined, here: Ms | undefined): number {
  return there === undefined || here === undefined ? count : Math.max(1, Math.round((count * there) / (there + here)))
}

/**
 * What this thread has worked so far. How long its event loop was busy is no measure of that: while the others have the cores
 * it waits for one and looks busy. Linux tells (`schedstat`: nanoseconds on a core); elsewhere the loop has to do.
 */
function workedHere(): Ms {
  try {
    return Number(readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'utf8').split(' ')[0]) / 1e6
  } catch {
    return performance.eventLoopUtilization().active
  }
}

/** What was learned lately counts half. */
const learn = (before: Ms | undefined, now: Ms): Ms => (before === undefined ? now : (before + now) / 2)

export class Engine {
  readonly #queues = new Map<string, Queue>()
  readonly #threads: Thread[] = []
  readonly #program: URL
  readonly #engines: readonly EngineName[]
  readonly #models = new Map<string, ModelFiles>()
  /** Of each model: questions that are not answered yet, and holds. */
  readonly #open = new Map<string, number>()
  /** Called when a question is answered: somebody waits for the last one. */
  readonly #watchers = new Set<() => void>()
  #waitingBytes: Bytes = 0
  readonly #rooms = new Rooms()
  #ids = 0
  #isPumping = false
  /** E6: of a question, in this thread; undefined before anything was measured. */
  #cost: Ms | undefined
  #look = { at: performance.now(), worked: workedHere(), answered: 0 }
  #isClosed = false

  /** `program`: where the built thread lies. */
  constructor(count = availableParallelism(), engines: readonly EngineName[] = engineNames, program = new URL('./engine-thread.mjs', import.meta.url)) {
    this.#program = program
    this.#engines = engines
    for (let at = 0; at < count; at += 1) this.#threads.push(this.#startThread())
  }

  /** Questions that wait, and their bytes. */
  get waiting(): { readonly questions: number; readonly bytes: Bytes } {
    return { questions: [...this.#queues.values()].reduce((sum, { waiting }) => sum + waiting.length, 0), bytes: this.#waitingBytes }
  }

  /** Models that are loaded. */
  get loaded(): number {
    return this.#models.size
  }

  /** Loads a model into every thread, where it proves itself. Throws `MODEL_INVALID`. */
  async load(digest: string, files: ModelFiles): Promise<Loaded> {
    const order = { kind: 'load', digest, files, engines: this.#engines } as const
    const asked = this.#threads.filter(({ isDead }) => !isDead)
    const reports = await Promise.all(asked.map((thread) => this.#order(thread, order)))
    const [loaded] = reports.map((report) => (report as Extract<Report, { kind: 'loaded' }>).loaded).sort((a, b) => Number('code' in b) - Number('code' in a))
    if (!loaded || 'code' in loaded) {
      await this.#letGo(digest)
      throw new Fault(loaded?.code ?? 'INTERNAL', loaded?.message ?? 'There is no thread')
    }
    this.#models.set(digest, files)
    // those that have taken the place of dead ones meanwhile
    await Promise.all(this.#threads.map((thread) => (asked.includes(thread) ? undefined : this.#order(thread, order).catch(() => {}))))
    return loaded
  }

  /** E4 */
  async unload(digest: string): Promise<void> {
    while ((this.#open.get(digest) ?? 0) > 0) await new Promise<void>((resolve) => this.#watchers.add(resolve))
    this.#models.delete(digest)
    this.#open.delete(digest)
    for (const kind of this.#queues.keys()) if (kind.endsWith(digest)) this.#queues.delete(kind)
    await this.#letGo(digest)
  }

  async #letGo(digest: string): Promise<void> {
    // a thread that is dead holds nothing
    await Promise.all(this.#threads.map((thread) => this.#order(thread, { kind: 'unload', digest }).catch(() => {})))
  }

  /** Throws `OVERLOADED`, `DEADLINE_PASSED`, `MODEL_UNAVAILABLE` and what the question itself deserves. */
  ask(question: Question, bytes: Pieces, deadline: EpochMs = Number.POSITIVE_INFINITY): Promise<Reply> {
    const pieces = bytes instanceof Uint8Array ? [bytes] : bytes
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0)
    for (const digest of digestsOf(question))
      if (!this.#models.has(digest)) return Promise.reject(new Fault('MODEL_UNAVAILABLE', `The model ${digest.slice(0, 12)}… is not loaded`))
    if (this.#waitingBytes + length > waitingLimit)
      return Promise.reject(new Fault('OVERLOADED', `${this.waiting.questions} questions of ${this.#waitingBytes} bytes wait already`))
    return new Promise((resolve, reject) => {
      this.#count(digestsOf(question), 1)
      this.#waitingBytes += length
      const settled =
        <Value>(act: (value: Value) => void) =>
        (value: Value): void => {
          this.#count(digestsOf(question), -1)
          act(value)
        }
      const kind = kindOf(question)
      const queue = this.#queues.get(kind) ?? { waiting: [], limit: firstBatch, cost: undefined }
      this.#queues.set(kind, queue)
      queue.waiting.push({ question, pieces, length, deadline, resolve: settled(resolve), reject: settled(reject) })
      this.#pumpSoon()
    })
  }

  /** Keeps models from being let go until it is disposed of: for whoever chose them and cannot ask yet. */
  hold(digests: Iterable<string>): Disposable {
    const held = [...digests]
    this.#count(held, 1)
    return { [Symbol.dispose]: () => this.#count(held, -1) }
  }

  #count(digests: Iterable<string>, by: 1 | -1): void {
    for (const digest of digests) this.#open.set(digest, (this.#open.get(digest) ?? 0) + by)
    if (by < 0) {
      for (const wake of this.#watchers) wake()
      this.#watchers.clear()
    }
  }

  /** After all that came over the sockets in this turn. */
  #pumpSoon(): void {
    if (this.#isPumping) return
    this.#isPumping = true
    setImmediate(() => {
      this.#isPumping = false
      this.#pump()
    })
  }

  /** E1, E6 */
  #pump(): void {
    const alive = this.#threads.filter(({ isDead }) => !isDead)
    // whoever was served goes to the end of the line, and is seen again there
    for (const [kind, queue] of this.#queues) {
      const threads = alive.slice(0, threadsFor(alive.length, queue.cost, this.#cost))
      const [thread] = [...threads].sort((a, b) => a.due - b.due || a.batches - b.batches)
      // one that has more to do is no place for what the first to be free takes in a moment
      if (!thread || thread.batches >= ordersAhead) continue
      const batch = this.#take(
        queue,
        threads.reduce((sum, { batches }) => sum + ordersAhead - batches, 0),
      )
      if (batch.length === 0) continue
      this.#queues.delete(kind)
      this.#queues.set(kind, queue)
      void this.#answer(thread, queue, batch)
    }
  }

  /** E6 */
  #learnCost(answered: number): void {
    this.#look.answered += answered
    const now = performance.now()
    const gap = now - this.#look.at
    if (gap < lookEvery) return
    const worked = workedHere()
    if (gap < longestLook) this.#cost = learn(this.#cost, (worked - this.#look.worked) / this.#look.answered)
    this.#look = { at: now, worked, answered: 0 }
  }

  /** The next batch of a queue, which is shared among `places`. */
  #take(queue: Queue, places: number): Waiting[] {
    const now = Date.now()
    for (;;) {
      const count = Math.min(queue.limit, Math.ceil(queue.waiting.length / places))
      const batch: Waiting[] = []
      let seen = 0
      for (const one of queue.waiting) {
        if (batch.length === count) break
        seen += 1
        this.#waitingBytes -= one.length
        if (one.deadline >= now) batch.push(one)
        else one.reject(new Fault('DEADLINE_PASSED', 'It was not answered before its deadline'))
      }
      queue.waiting.splice(0, seen)
      if (batch.length > 0 || queue.waiting.length === 0) return batch
    }
  }

  async #answer(thread: Thread, queue: Queue, batch: readonly Waiting[]): Promise<void> {
    const due = batch.length * (queue.cost ?? 0)
    thread.batches += 1
    thread.due += due
    try {
      const packed = this.#rooms.take(batch.reduce((sum, { length }) => sum + length, 0))
      let end = 0
      const ends = batch.map(({ pieces }) => {
        for (const piece of pieces) {
          packed.set(piece, end)
          end += piece.length
        }
        return end
      })
      // one piece that changes hands
      const report = await this.#order(thread, { kind: 'answer', questions: batch.map(({ question }) => question), packed, ends }, [packed.buffer])
      const { answers, ms, room } = report as Extract<Report, { kind: 'answered' }>
      this.#rooms.give(room)
      queue.limit = nextBatch(queue.limit, batch.length, ms)
      queue.cost = learn(queue.cost, ms / batch.length)
      this.#learnCost(batch.length)
      for (const [at, { resolve, reject }] of batch.entries()) {
        const answer = answers[at] as Answer
        if ('code' in answer) reject(new Fault((answer as Refusal).code, (answer as Refusal).message))
        else resolve({ scored: answer as readonly Scored[], predictMs: ms })
      }
    } catch (thrown) {
      for (const { reject } of batch) reject(toError(thrown))
    } finally {
      thread.batches -= 1
      thread.due -= due
      this.#pump()
    }
  }

  #order(thread: Thread, order: WithoutId<Order>, transferred: readonly ArrayBuffer[] = []): Promise<Report> {
    const id = ++this.#ids
    return new Promise((resolve, reject) => {
      if (thread.isDead) return reject(new Fault('THREAD_DIED', 'A thread that answers has ended; another one is started'))
      thread.orders.set(id, { done: resolve, failed: reject })
      thread.worker.postMessage({ ...order, id }, [...transferred])
    })
  }

  #startThread(): Thread {
    const worker = new Worker(this.#program)
    const thread: Thread = { worker, orders: new Map(), batches: 0, due: 0, isDead: false }
    worker.on('message', (report: Report) => {
      thread.orders.get(report.id)?.done(report)
      thread.orders.delete(report.id)
    })
    let died: Error | undefined
    worker.on('error', (error) => {
      died = error
    })
    worker.once('exit', (code) => {
      thread.isDead = true
      const error = new Fault('THREAD_DIED', `A thread that answers has ended with code ${code}`, {}, died)
      for (const { failed } of thread.orders.values()) failed(error)
      // one that cannot start at all is tried again, and takes no core meanwhile
      if (!this.#isClosed) setTimeout(() => void this.#replace(thread), restartPause)
    })
    return thread
  }

  /** E5 */
  async #replace(dead: Thread): Promise<void> {
    if (this.#isClosed) return
    const thread = this.#startThread()
    for (const [digest, files] of this.#models) await this.#order(thread, { kind: 'load', digest, files, engines: this.#engines }).catch(() => {})
    this.#threads.splice(this.#threads.indexOf(dead), 1, thread)
    this.#pump()
  }

  async close(): Promise<void> {
    this.#isClosed = true
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()))
  }
}
