/**
 * `GET /v1/stream`: predictions over one WebSocket, pictures in, answers out, in order.
 *   client → { "task": "occupancy", "deadlineMs": 500 }    first, and again for another task
 *   server → { "kind": "ready", "task", "modelVersion", …, "credit": 64, "largest": 20000000 }
 *   client → a binary message per picture: the length of its JSON as a big-endian uint32, the JSON, the picture's bytes. The
 *            JSON may be left out (length 0); in it: { "id", "camera", "zone", "deadlineMs", "pixels": true }
 *   server → { "kind": "answer", "id", … } or { "kind": "error", "id", "code", … } for each, in the order they came
 * G1  Whoever has `credit` pictures unanswered is not read from until one is answered: nothing is lost, and what one client
 *     sends never piles up here.
 * G2  Nor is whoever does not take the answers: beyond `slowLimit` of them nothing is read, and after `stallLimit` it is closed.
 * G3  Whoever says nothing and answers no ping is gone.
 */
import { Fault } from '@frameloop/kit/fault'
import type { Bytes } from '@frameloop/kit/units'
import { namePattern } from '@frameloop/schemas/ids'
import Type, { type Static } from 'typebox'
import { Compile, type Validator } from 'typebox/compile'
import type { WebSocket } from 'ws'
import { referenceKey } from '../models/model-input.ts'
import type { Slot } from '../models/model-slots.ts'
import { allow, type Caller } from './access.ts'
import { type Engine, usualDeadline } from './engine.ts'
import { errorMessage, pingInterval, slowLimit, stallLimit, together, type Wire } from './messages.ts'

const Name = Type.String({ pattern: namePattern })
const Deadline = Type.Integer({ minimum: 1, maximum: 60_000 })
const Opening = Type.Object({ task: Name, deadlineMs: Type.Optional(Deadline) }, { additionalProperties: false })
const About = Type.Object(
  {
    id: Type.Optional(Type.Union([Type.String({ maxLength: 200 }), Type.Integer()])),
    ...{ camera: Type.Optional(Name), zone: Type.Optional(Name), deadlineMs: Type.Optional(Deadline) },
    pixels: Type.Optional(Type.Boolean({ description: 'the bytes are the pixels that the model takes' })),
  },
  { additionalProperties: false },
)
type About = Static<typeof About>

const credit = 64

export interface StreamTools {
  readonly engine: Pick<Engine, 'ask'>
  /** Throws `TASK_UNKNOWN`, `MODEL_UNAVAILABLE`. */
  readonly championOf: (task: string) => Slot
  readonly answerOf: (slot: Slot, scores: readonly number[]) => object
  /** Who asks; without one everything is allowed. */
  readonly caller?: Caller
  /** What the socket writes to. */
  readonly wire: Wire & { readonly bytesRead?: number }
  /** Bytes of a message, at most; a larger one ends the connection (1009). */
  readonly largest?: Bytes
}

export type StreamSocket = Pick<WebSocket, 'send' | 'on' | 'pause' | 'resume' | 'terminate' | 'ping' | 'bufferedAmount'>

// asked for every picture
const [openings, abouts] = [Compile(Opening), Compile(About)]

/** Throws `REQUEST_INVALID`. */
function checked<Value>(validator: Pick<Validator, 'Check' | 'Errors'>, said: unknown, what: string): Value {
  if (validator.Check(said)) return said as Value
  const [problem] = validator.Errors(said)
  throw new Fault('REQUEST_INVALID', `${what}: ${problem?.instancePath.slice(1)} ${problem?.message}`)
}

function parsed(text: string, what: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new Fault('REQUEST_INVALID', `${what} is no JSON`)
  }
}

/** The two parts of a binary message, and whom it is from even when it is wrong. Throws `REQUEST_INVALID`. */
export function readBinary(message: Buffer, withId: (id: About['id']) => void = () => {}): { readonly about: About; readonly bytes: Buffer } {
  const length = message.length < 4 ? Number.POSITIVE_INFINITY : message.readUInt32BE(0)
  if (length > message.length - 4) throw new Fault('REQUEST_INVALID', 'A picture begins with the length of its JSON as a big-endian uint32, which may be 0')
  const bytes = message.subarray(4 + length)
  if (length === 0) return { about: {}, bytes }
  const said = parsed(message.toString('utf8', 4, 4 + length), 'What stands before a picture')
  const { id } = (said ?? {}) as { id?: unknown }
  if (typeof id === 'string' || typeof id === 'number') withId(id)
  return { about: checked<About>(abouts, said, 'What stands before a picture'), bytes }
}

/** Serves one client until it goes. */
export function serveStream(socket: StreamSocket, { engine, championOf, answerOf, caller, wire, largest }: StreamTools): void {
  let opened: Static<typeof Opening> | undefined
  /** Answers in the order of the questions; each is sent when those before it are. */
  let last: Promise<void> = Promise.resolve()
  let unanswered = 0
  /** G2: runs while too much of what was said has not left. */
  let stalled: NodeJS.Timeout | undefined
  const steer = (): void => {
    if (unanswered >= credit || stalled) socket.pause()
    else socket.resume()
  }
  const withOthers = together(wire)
  /** Something has left for the network. */
  const left = (): void => {
    if (!stalled || socket.bufferedAmount > slowLimit) return
    clearTimeout(stalled)
    stalled = undefined
    steer()
  }
  const say = (message: object): void => {
    withOthers()
    socket.send(JSON.stringify(message), left)
    if (stalled || socket.bufferedAmount <= slowLimit) return
    stalled = setTimeout(() => socket.terminate(), stallLimit)
    steer()
  }
  const open = (text: string): void => {
    const wish = checked<Static<typeof Opening>>(openings, parsed(text, 'The first message'), 'The first message is like { "task": "occupancy" }')
    if (caller) allow(caller, 'predict', { task: wish.task })
    const { change, model } = championOf(wish.task)
    opened = wish
    say({
      kind: 'ready',
      task: wish.task,
      modelName: change.modelName,
      modelVersion: change.version,
      engine: model.engine,
      classes: model.meta.classes,
      credit,
      ...(largest === undefined ? {} : { largest }),
    })
  }
  const answer = async (message: Buffer): Promise<object> => {
    let id: About['id']
    try {
      const { about, bytes } = readBinary(message, (its) => {
        id = its
      })
      // it may be opened for another one before the answer is there
      const asked = opened
      if (!asked) throw new Fault('REQUEST_INVALID', 'Say first which task is asked about: { "task": "occupancy" }')
      const slot = championOf(asked.task)
      const { camera, zone, deadlineMs = asked.deadlineMs ?? usualDeadline, pixels } = about
      if (caller) allow(caller, 'predict', { camera })
      caller?.take()
      const key = camera && zone ? referenceKey(camera, zone) : ''
      const { scored } = await engine.ask({ kind: pixels ? 'pixels' : 'picture', digest: slot.change.digest, referenceKey: key }, bytes, Date.now() + deadlineMs)
      return { kind: 'answer', id, task: asked.task, ...(camera ? { camera } : {}), ...(zone ? { zone } : {}), ...answerOf(slot, scored[0]?.scores ?? []) }
    } catch (thrown) {
      return errorMessage(thrown, { id })
    }
  }
  /** G3: since the last ping; one that is not read from cannot be heard. */
  let isHeard = true
  let came = wire.bytesRead
  const pinging = setInterval(() => {
    // a large picture on its way over a thin link lets no pong go by
    if (!isHeard && came === wire.bytesRead && unanswered < credit && !stalled) return socket.terminate()
    isHeard = false
    came = wire.bytesRead
    socket.ping()
  }, pingInterval)
  socket.on('pong', () => {
    isHeard = true
  })
  socket.on('message', (data: Buffer, isBinary: boolean) => {
    isHeard = true
    if (!isBinary) {
      try {
        open(data.toString('utf8'))
      } catch (thrown) {
        say(errorMessage(thrown))
      }
      return
    }
    unanswered += 1
    // G1
    if (unanswered === credit) steer()
    const answering = answer(data)
    last = last.then(async () => {
      say(await answering)
      unanswered -= 1
      if (unanswered === credit - 1) steer()
    })
  })
  // it goes with its questions: their answers reach nobody
  socket.on('error', () => {})
  socket.on('close', () => {
    clearTimeout(stalled)
    clearInterval(pinging)
  })
}
