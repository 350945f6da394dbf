/**
 * `GET /v1/feeds`: live answers, one after the other.
 * F1  The server sends no more than this reader can take: so many messages may be on their way, and each that was taken makes
 *     room for another. What comes too fast is not queued anywhere: the server keeps the latest of each zone.
 * F2  After an interruption the feed goes on behind the last answer of each partition; where that is no longer known, a `gap` says so.
 */
import type { FeedMessage, Gap, LivePrediction, Picture, Problem } from './messages.ts'
import { FrameloopError } from './problem.ts'
import { type Access, keepOpen } from './socket.ts'

/** An absent list means all. */
export interface FeedWish {
  readonly cameras?: readonly string[]
  readonly zones?: readonly string[]
  readonly tasks?: readonly string[]
  /** Whether the pictures are sent along; `none` unless said. */
  readonly pictures?: 'none' | 'jpeg'
  /** Messages that may be on their way; 100 unless said. */
  readonly ahead?: number
  /** Told when the connection comes and goes. */
  readonly onState?: (state: 'live' | 'reconnecting') => void
}

/** Ends with `close()`, with leaving the loop, or with a `FrameloopError` when the server refuses for good. */
export interface Feed extends AsyncIterable<FeedMessage> {
  close(): void
}

/** JSON and bytes in one message. */
export function splitBinary(message: Uint8Array<ArrayBuffer>): { readonly about: object; readonly bytes: Uint8Array<ArrayBuffer> } {
  const length = new DataView(message.buffer, message.byteOffset).getUint32(0)
  return { about: JSON.parse(new TextDecoder().decode(message.subarray(4, 4 + length))) as object, bytes: message.subarray(4 + length) }
}

export function openFeed(access: Access, { ahead = 100, onState = () => {}, ...wish }: FeedWish): Feed {
  const waiting: FeedMessage[] = []
  /** F2, by partition. */
  const resume = new Map<string, string>()
  let send: ((data: string) => void) | undefined
  let [taken, isEnded]: [number, boolean] = [0, false]
  let failure: Error | undefined
  let wake = (): void => {}
  const push = (message: FeedMessage): void => {
    waiting.push(message)
    wake()
  }
  const end = (error?: Error): void => {
    isEnded = true
    failure = error
    wake()
  }
  const stop = keepOpen(access, '/v1/feeds', {
    onOpen: (say) => {
      send = say
      // what waits here still was not taken
      const credit = Math.max(1, ahead - waiting.length)
      taken = 0
      say(JSON.stringify({ ...wish, credit, ...(resume.size > 0 ? { resume: [...resume.values()] } : {}) }))
    },
    onText: (text) => {
      const message = JSON.parse(text) as LivePrediction | Gap | ({ readonly kind: 'error' } & Problem) | { readonly kind: 'subscribed' }
      if (message.kind === 'subscribed') onState('live')
      else if (message.kind === 'error') {
        stop()
        end(new FrameloopError(message))
      } else {
        if (message.kind === 'prediction') resume.set(message.resume.split(':')[0] ?? '', message.resume)
        push(message)
      }
    },
    onBytes: (message) => {
      const { about, bytes } = splitBinary(message)
      push({ ...(about as Omit<Picture, 'bytes'>), bytes })
    },
    onAway: (error) => {
      send = undefined
      if (error) end(error)
      else onState('reconnecting')
    },
  })
  /** F1, in pieces: a message for each would double the traffic. */
  const grant = (): void => {
    taken += 1
    if (taken < ahead / 2 || !send) return
    send(JSON.stringify({ credit: taken }))
    taken = 0
  }
  const close = (): void => {
    stop()
    end()
  }
  return {
    close,
    async *[Symbol.asyncIterator]() {
      try {
        for (;;) {
          const message = waiting.shift()
          if (message) {
            grant()
            yield message
          } else if (failure) throw failure
          else if (isEnded) return
          else
            await new Promise<void>((resolve) => {
              wake = resolve
            })
        }
      } finally {
        close()
      }
    },
  }
}
