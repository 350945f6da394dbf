/**
 * `GET /v1/feeds`: live answers over a WebSocket.
 *   client → { "cameras": [..], "zones": [..], "tasks": [..], "pictures": "none" | "jpeg", "credit": 100, "resume": ["3:1042"] }
 *            what it wants, said again whenever it wants something else; an absent list means all
 *   client → { "credit": 50 }    so many more messages may come; a client that never named a credit takes all
 *   server → { "kind": "prediction", …, "resume": "3:1042" }    one per answer; the newest `resume` of each partition (the
 *            number before the colon), said when it comes back, is where the feed goes on
 *   server → a binary message for a picture: the length of its JSON as a big-endian uint32, the JSON, the picture's bytes
 *   server → { "kind": "gap", … }    between what was said to be resumed and what is still known here something is missing
 * F1  Nobody waits for a reader: what it cannot take yet is kept as the latest per camera, zone and task, and the next
 *     message says how many were `skipped`. What it says itself is not read meanwhile.
 * F2  A reader that takes nothing for `stallLimit`, or answers no ping, is closed (1013): it may come back and resume. Slow is
 *     not stalled: whoever takes a message, or a burst of them that left together, within that time stays.
 */
import { Fault } from '@frameloop/kit/fault'
import type { Bytes, EpochMs } from '@frameloop/kit/units'
import type { ObjectRef, PredictionMade } from '@frameloop/schemas/events'
import Type, { type Static } from 'typebox'
import Value from 'typebox/value'
import type { WebSocket } from 'ws'
import { everything, type Scope } from './access.ts'
import { binaryMessage, errorMessage, pingInterval, slowLimit, stallLimit, together, type Wire } from './messages.ts'

const Names = Type.Optional(Type.Array(Type.String({ maxLength: 200 }), { maxItems: 1_000 }))
const Credit = Type.Integer({ minimum: 0, maximum: 1_000_000 })
const Wish = Type.Object(
  {
    ...{ cameras: Names, zones: Names, tasks: Names },
    pictures: Type.Optional(Type.Union([Type.Literal('none'), Type.Literal('jpeg')])),
    credit: Type.Optional(Credit),
    resume: Type.Optional(Type.Array(Type.String({ pattern: '^\\d{1,9}:\\d{1,15}$' }), { maxItems: 1_000 })),
  },
  { additionalProperties: false },
)
type Wish = Static<typeof Wish>
const example = '{ "cameras": [], "zones": [], "tasks": [], "pictures": "none", "credit": 100 }'

/** Answers that are kept for those who come back. */
const remembered = 2_000
const wishLimit: Bytes = 64 * 1024
const tooSlow = 1013

/** Where an answer stands on its topic. */
export interface Place {
  readonly partition: number
  readonly offset: number
}

export interface FeedNumbers {
  sent: number
  skipped: number
  /** Closed because they took nothing. */
  stalled: number
}

interface Published extends Place {
  readonly prediction: PredictionMade
  readonly text: string
}

/** What a socket must be able to do, which is what a test can do without one. */
export type FeedSocket = Pick<WebSocket, 'send' | 'close' | 'terminate' | 'ping' | 'bufferedAmount' | 'pause' | 'resume'>

/** Both what it wants and what it may see. */
function isFor({ wish, scope }: Reader, { cameraId, zone, task }: PredictionMade): boolean {
  const has = (list: readonly string[] | undefined, value: string): boolean => list === undefined || list.length === 0 || list.includes(value)
  return wish !== undefined && has(wish.cameras, cameraId) && has(wish.zones, zone) && has(wish.tasks, task) && has(scope.cameras, cameraId) && has(scope.tasks, task)
}

export class Reader {
  wish: Wish | undefined
  readonly scope: Scope
  readonly #socket: FeedSocket
  readonly #numbers: FeedNumbers
  /** F1, by what each of them is about, the oldest first. */
  readonly #latest = new Map<string, string | Buffer>()
  #credit = Number.POSITIVE_INFINITY
  #skipped = 0
  /** When it was first seen with too much in its buffer, since something last left. */
  #blockedSince: EpochMs | undefined
  #hasTaken = false
  /** The frame of each camera whose picture was sent last. */
  readonly pictured = new Map<string, string>()

  readonly #withOthers: () => void

  constructor(socket: FeedSocket, numbers: FeedNumbers, scope: Scope, wire: Wire) {
    this.scope = scope
    this.#withOthers = together(wire)
    this.#socket = socket
    this.#numbers = numbers
  }

  subscribe(wish: Wish): void {
    this.wish = wish
    this.#credit = wish.credit ?? Number.POSITIVE_INFINITY
    this.#latest.clear()
    this.#socket.send(JSON.stringify({ kind: 'subscribed', ...wish }))
  }

  grant(credit: number): void {
    this.#credit += credit
    this.flush()
  }

  offer(about: string, message: string | Buffer): void {
    if (this.#latest.delete(about)) {
      this.#skipped += 1
      this.#numbers.skipped += 1
    }
    this.#latest.set(about, message)
    this.flush()
  }

  /** As much of what is kept as it takes now. */
  readonly flush = (): void => {
    for (const [about, message] of this.#latest) {
      if (this.#credit < 1 || this.#isHigh) return
      this.#latest.delete(about)
      this.#credit -= 1
      this.#numbers.sent += 1
      const isTold = this.#skipped > 0 && typeof message === 'string'
      const told = isTold ? `${message.slice(0, -1)},"skipped":${this.#skipped}}` : message
      if (isTold) this.#skipped = 0
      this.#withOthers()
      this.#socket.send(told, this.#left)
    }
  }

  /** Something has left for the network: there may be room for more. */
  readonly #left = (): void => {
    this.#blockedSince = undefined
    this.#hasTaken = true
    this.release()
    this.flush()
  }

  get #isHigh(): boolean {
    return this.#socket.bufferedAmount > slowLimit
  }

  /** F2: whether it has had too much in its buffer for too long, and nothing has left. */
  isStalled(now: EpochMs): boolean {
    if (!this.#isHigh) this.#blockedSince = undefined
    else this.#blockedSince ??= now
    return this.#blockedSince !== undefined && now - this.#blockedSince > stallLimit
  }

  close(why: string): void {
    this.#latest.clear()
    this.#socket.close(tooSlow, why)
    // whoever takes nothing takes no closing words either
    this.#socket.terminate()
  }

  ping(): void {
    this.#hasTaken = false
    this.#socket.ping()
  }

  /** F2: whether its answer to a ping may stand behind what it is still taking. */
  get isTaking(): boolean {
    return this.#isHigh && this.#hasTaken
  }

  /** F1: what it says is answered, so whoever takes no answers may not go on saying things. */
  hold(): void {
    if (this.#isHigh) this.#socket.pause()
  }

  release(): void {
    if (!this.#isHigh) this.#socket.resume()
  }

  refuse(thrown: unknown): void {
    this.#socket.send(JSON.stringify(errorMessage(thrown)))
  }
}

/** What a client says. Throws `REQUEST_INVALID`. */
function readWish(data: Buffer): Wish {
  if (data.length > wishLimit) throw new Fault('REQUEST_INVALID', `A subscription has at most ${wishLimit} bytes`)
  let said: unknown
  try {
    said = JSON.parse(data.toString('utf8'))
  } catch {
    throw new Fault('REQUEST_INVALID', `A subscription is JSON: ${example}`)
  }
  const [problem] = Value.Errors(Wish, said)
  if (problem) throw new Fault('REQUEST_INVALID', `${problem.instancePath.slice(1) || 'A subscription'} ${problem.message}; a subscription is like ${example}`)
  return said as Wish
}

export class Feeds {
  readonly numbers: FeedNumbers = { sent: 0, skipped: 0, stalled: 0 }
  readonly #readers = new Set<Reader>()
  /** Of those who have not answered the last ping. */
  readonly #silent = new Set<Reader>()
  #published: Published[] = []
  /** Of each partition the newest answer that is no longer kept. */
  readonly #forgotten = new Map<number, number>()
  readonly #fetch: (object: ObjectRef) => Promise<Uint8Array>

  /** `fetch`: how a frame's picture is read, for those who want it. */
  constructor(fetch: (object: ObjectRef) => Promise<Uint8Array>) {
    this.#fetch = fetch
  }

  get size(): number {
    return this.#readers.size
  }

  /** `wire`: what the socket writes to. */
  add(socket: FeedSocket & Pick<WebSocket, 'on'>, wire: Wire, scope: Scope = everything): void {
    const reader = new Reader(socket, this.numbers, scope, wire)
    const gone = (): void => {
      this.#readers.delete(reader)
      this.#silent.delete(reader)
    }
    this.#readers.add(reader)
    socket.on('close', gone)
    socket.on('error', gone)
    socket.on('pong', () => this.#silent.delete(reader))
    socket.on('message', (data: Buffer) => {
      try {
        this.hear(reader, data)
      } catch (thrown) {
        reader.refuse(thrown)
      }
      reader.hold()
    })
  }

  /** Throws `REQUEST_INVALID`. */
  hear(reader: Reader, data: Buffer): void {
    const wish = readWish(data)
    if (reader.wish && Object.keys(wish).join() === 'credit') {
      reader.grant(wish.credit ?? 0)
      return
    }
    reader.subscribe(wish)
    // where several places of a partition are named, behind the last of them
    const places = new Map<number, number>()
    for (const [partition = 0, offset = 0] of (wish.resume ?? []).map((place) => place.split(':').map(Number))) places.set(partition, Math.max(offset, places.get(partition) ?? 0))
    if (places.size > 0) this.#resume(reader, places)
  }

  /** Once through what is kept, however many places are named. */
  #resume(reader: Reader, places: ReadonlyMap<number, number>): void {
    const first = new Map<number, number>()
    for (const { partition, offset } of this.#published) if (!first.has(partition)) first.set(partition, offset)
    for (const [partition, offset] of places) {
      const [known, forgotten] = [first.get(partition), this.#forgotten.get(partition)]
      // between two answers lie transaction markers, so the next one need not be the next number
      const isMissed = forgotten === undefined ? known === undefined || known > offset + 2 : forgotten > offset
      if (isMissed) reader.offer(`gap ${partition}`, JSON.stringify({ kind: 'gap', partition, after: offset, next: known ?? null }))
    }
    for (const one of this.#published) if (one.offset > (places.get(one.partition) ?? Number.POSITIVE_INFINITY)) this.#offer(reader, one)
  }

  publish(prediction: PredictionMade, traceId: string, { partition, offset }: Place): void {
    // on record, and for nobody's eyes
    if (prediction.alias === 'shadow') return
    const { picture, classes, scores, ...rest } = prediction
    const text = JSON.stringify({
      kind: 'prediction',
      ...rest,
      scores: classes.map((name, at) => ({ class: name, score: scores[at] })),
      pictureKey: picture?.key ?? '',
      traceId,
      resume: `${partition}:${offset}`,
    })
    const one: Published = { prediction, text, partition, offset }
    this.#published.push(one)
    // cut seldom: cutting moves all of them
    if (this.#published.length > 2 * remembered) {
      for (const { partition: of, offset: last } of this.#published.slice(0, -remembered)) this.#forgotten.set(of, last)
      this.#published = this.#published.slice(-remembered)
    }
    for (const reader of this.#readers) this.#offer(reader, one)
  }

  #offer(reader: Reader, { prediction, text }: Published): void {
    if (!isFor(reader, prediction)) return
    const { cameraId, zone, task, lane, frameId, picture } = prediction
    // what comes late takes no live answer's place
    reader.offer(`${cameraId} ${zone} ${task} ${lane}`, text)
    if (reader.wish?.pictures !== 'jpeg' || !picture || reader.pictured.get(cameraId) === frameId) return
    reader.pictured.set(cameraId, frameId)
    this.#picture(picture).then(
      (bytes) => reader.offer(`picture ${cameraId}`, binaryMessage({ kind: 'picture', cameraId, frameId, contentType: picture.contentType }, bytes)),
      // erased meanwhile, or the store is away: the answers go on
      () => {},
    )
  }

  readonly #pictures = new Map<string, Promise<Uint8Array>>()

  /** Fetched once for all who look at it. */
  #picture(object: ObjectRef): Promise<Uint8Array> {
    const key = `${object.bucket}/${object.key}`
    const found = this.#pictures.get(key) ?? this.#fetch(object)
    this.#pictures.delete(key)
    this.#pictures.set(key, found)
    const [oldest] = this.#pictures.keys()
    if (this.#pictures.size > 64 && oldest) this.#pictures.delete(oldest)
    found.catch(() => this.#pictures.delete(key))
    return found
  }

  /** F2; to be called often. */
  look(now: EpochMs): void {
    for (const reader of this.#readers) {
      reader.release()
      if (!reader.isStalled(now)) continue
      this.numbers.stalled += 1
      reader.close(`nothing was taken for ${stallLimit / 1000} s`)
    }
  }

  /** F2; to be called every `pingInterval`. */
  ping(): void {
    for (const reader of this.#silent) if (!reader.isTaking) reader.close('no answer to a ping')
    for (const reader of this.#readers) {
      this.#silent.add(reader)
      reader.ping()
    }
  }

  /** Until the signal. */
  run(signal: AbortSignal): Promise<void> {
    const timers = [setInterval(() => this.look(Date.now()), 1_000), setInterval(() => this.ping(), pingInterval)]
    return new Promise((resolve) =>
      signal.addEventListener(
        'abort',
        () => {
          for (const timer of timers) clearInterval(timer)
          resolve()
        },
        { once: true },
      ),
    )
  }
}
