/**
 * `GET /v1/stream`: many pictures over one connection, answers in the order they were asked.
 * P1  No more are on their way than the server gives credit for; the others wait here.
 * P2  A question whose deadline passes fails here, whether it is on its way, waits, or the server is away.
 * P3  After an interruption what was not answered is asked again: a prediction changes nothing, so asking twice is harmless.
 */
import type { Answer, Problem } from './messages.ts'
import { FrameloopError } from './problem.ts'
import { type Access, keepOpen } from './socket.ts'

export interface StreamOptions {
  /** Milliseconds within which an answer is of use; what is later fails with `DEADLINE_PASSED`. */
  readonly deadlineMs?: number
}

export interface StreamAbout {
  /** With `zone`: what it usually looks like there is what the picture is compared with. */
  readonly camera?: string
  readonly zone?: string
  readonly deadlineMs?: number
  /** The bytes are the pixels that the model takes. */
  readonly pixels?: boolean
}

export interface StreamAnswer extends Answer {
  readonly task: string
  readonly traceId: string
  readonly camera?: string
  readonly zone?: string
}

export interface PredictionStream {
  /** Pictures that are not answered yet. */
  readonly unanswered: number
  /** Throws `FrameloopError` with what the server says of this picture. */
  ask(picture: Uint8Array, about?: StreamAbout): Promise<StreamAnswer>
  /** Fails what is unanswered. */
  close(): void
}

interface Question {
  readonly message: Uint8Array<ArrayBuffer>
  /** Ends it when its deadline has passed, wherever it is. */
  readonly timer: ReturnType<typeof setTimeout> | undefined
  readonly resolve: (answer: StreamAnswer) => void
  readonly reject: (error: Error) => void
}

/** What passes by itself: a model that is still being loaded, a server that does not know its tasks yet. */
const passing = ['MODEL_UNAVAILABLE', 'TASK_UNKNOWN', 'DATABASE_UNAVAILABLE', 'OVERLOADED', 'RATE_LIMITED']

type Said = (
  | { readonly kind: 'ready'; readonly credit: number; readonly largest?: number }
  | ({ readonly kind: 'answer' } & StreamAnswer)
  | ({ readonly kind: 'error' } & Problem)
) & { readonly id?: number }

/** The length of the JSON as a big-endian uint32, the JSON, the bytes. */
function joinBinary(about: object, bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(JSON.stringify(about))
  const message = new Uint8Array(4 + json.length + bytes.length)
  new DataView(message.buffer).setUint32(0, json.length)
  message.set(json, 4)
  message.set(bytes, 4 + json.length)
  return message
}

export function openStream(access: Access, task: string, options: StreamOptions): PredictionStream {
  /** In the order they were asked: what is on its way, then what waits for credit. */
  const open = new Map<number, Question>()
  let [credit, asked, sent, largest]: [number, number, number, number] = [0, 0, 0, Number.POSITIVE_INFINITY]
  /** Whether the task was there before: then it comes again. */
  let wasReady = false
  let interrupt = (): void => {}
  let send: ((data: string | Uint8Array<ArrayBuffer>) => void) | undefined
  let failure: Error | undefined
  const fail = (error: Error): void => {
    failure = error
    for (const id of [...open.keys()]) settle(id)?.reject(error)
  }
  const settle = (id: number): Question | undefined => {
    const question = open.get(id)
    open.delete(id)
    clearTimeout(question?.timer)
    return question
  }
  /** P1 */
  const pump = (): void => {
    while (send && credit > 0 && sent < asked) {
      sent += 1
      const question = open.get(sent)
      if (!question) continue
      if (question.message.byteLength > largest) {
        const detail = `The picture has ${question.message.byteLength} bytes, the server takes ${largest}`
        settle(sent)?.reject(new FrameloopError({ code: 'PICTURE_TOO_LARGE', detail }))
        continue
      }
      credit -= 1
      send(question.message)
    }
  }
  const stop = keepOpen(access, '/v1/stream', {
    onOpen: (say, giveUp) => {
      send = say
      interrupt = giveUp
      say(JSON.stringify({ task, ...options }))
    },
    onText: (text) => {
      const said = JSON.parse(text) as Said
      if (said.kind === 'ready') {
        wasReady = true
        largest = said.largest ?? largest
        // P3
        credit = said.credit
        const [first = asked + 1] = open.keys()
        sent = first - 1
        pump()
        return
      }
      if (said.id === undefined) {
        // not about a picture: about what was asked for as a whole
        if (said.kind !== 'error') return
        if (['MODEL_UNAVAILABLE', 'DATABASE_UNAVAILABLE'].includes(said.code) || (wasReady && passing.includes(said.code))) interrupt()
        else {
          stop()
          fail(new FrameloopError(said))
        }
        return
      }
      credit += 1
      // one whose deadline has passed is not there any more
      const question = settle(said.id)
      if (said.kind === 'error') question?.reject(new FrameloopError(said))
      else question?.resolve(said)
      pump()
    },
    onBytes: () => {},
    onAway: (error) => {
      send = undefined
      credit = 0
      if (error) fail(error)
    },
  })
  return {
    get unanswered() {
      return open.size
    },
    ask(picture, about = {}) {
      if (failure) return Promise.reject(failure)
      asked += 1
      const id = asked
      const message = joinBinary({ ...about, id }, picture)
      const deadline = about.deadlineMs ?? options.deadlineMs
      return new Promise((resolve, reject) => {
        const late = (): void => settle(id)?.reject(new FrameloopError({ code: 'DEADLINE_PASSED', detail: `It was not answered within ${deadline} ms` }))
        open.set(id, { message, timer: deadline === undefined ? undefined : setTimeout(late, deadline), resolve, reject })
        pump()
      })
    },
    close() {
      stop()
      fail(new FrameloopError({ code: 'CLOSED', detail: 'The stream was closed' }))
    },
  }
}
