/**
 * `GET /v1/feeds`: live answers over a WebSocket.
 *   client → { "cameras": [..], "zones": [..], "tasks": [..] }   what it wants; an absent list means all
 *   server → one message per answer; for a client that cannot keep up the latest per (camera, zone, task), with `skipped`
 */

import type { PredictionMade } from '@frameloop/schemas/events'
import type { WebSocket } from 'ws'

interface Wish {
  readonly cameras?: readonly string[]
  readonly zones?: readonly string[]
  readonly tasks?: readonly string[]
}

/** Bytes in a socket's buffer above which only the latest answers are kept. */
const slowLimit = 256 * 1024

function isWanted(wish: Wish, { cameraId, zone, task }: PredictionMade): boolean {
  const has = (list: readonly string[] | undefined, value: string): boolean => list === undefined || list.length === 0 || list.includes(value)
  return has(wish.cameras, cameraId) && has(wish.zones, zone) && has(wish.tasks, task)
}

class Reader {
  wish: Wish = {}
  readonly #socket: WebSocket
  readonly #latest = new Map<string, string>()
  #skipped = 0

  constructor(socket: WebSocket) {
    this.#socket = socket
  }

  offer(prediction: PredictionMade, text: string): void {
    if (!isWanted(this.wish, prediction)) return
    if (this.#socket.bufferedAmount > slowLimit) {
      const key = `${prediction.cameraId} ${prediction.zone} ${prediction.task}`
      if (this.#latest.has(key)) this.#skipped += 1
      this.#latest.set(key, text)
      return
    }
    for (const waiting of this.#latest.values()) this.#socket.send(waiting)
    this.#latest.clear()
    this.#socket.send(this.#skipped === 0 ? text : `${text.slice(0, -1)},"skipped":${this.#skipped}}`)
    this.#skipped = 0
  }
}

export class Feeds {
  readonly #readers = new Set<Reader>()

  get size(): number {
    return this.#readers.size
  }

  add(socket: WebSocket): void {
    const reader = new Reader(socket)
    this.#readers.add(reader)
    socket.on('close', () => this.#readers.delete(reader))
    socket.on('error', () => this.#readers.delete(reader))
    socket.on('message', (data: Buffer) => {
      try {
        reader.wish = JSON.parse(data.toString('utf8')) as Wish
        socket.send(JSON.stringify({ kind: 'subscribed', ...reader.wish }))
      } catch {
        socket.send(JSON.stringify({ kind: 'error', code: 'REQUEST_INVALID', detail: 'A subscription is JSON: { "cameras": [], "zones": [], "tasks": [] }' }))
      }
    })
  }

  publish(prediction: PredictionMade, traceId: string, position: { readonly partition: number; readonly offset: number }): void {
    if (this.#readers.size === 0) return
    const { picture, classes, scores, ...rest } = prediction
    const text = JSON.stringify({
      kind: 'prediction',
      ...rest,
      scores: classes.map((name, at) => ({ class: name, score: scores[at] })),
      pictureKey: picture?.key ?? '',
      traceId,
      resume: `${position.partition}:${position.offset}`,
    })
    for (const reader of this.#readers) reader.offer(prediction, text)
  }
}
