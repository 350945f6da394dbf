/** What is said over WebSockets, by feeds and by streams alike. */
import type { Writable } from 'node:stream'
import { problemOf } from '@frameloop/kit/http'
import type { Bytes, Ms } from '@frameloop/kit/units'

/** Bytes in a socket's buffer above which nothing more is read from whoever does not take them. */
export const slowLimit: Bytes = 256 * 1024
/** How long that may last. */
export const stallLimit: Ms = 20_000
/** Who has not answered one ping when the next is due is gone. */
export const pingInterval: Ms = 15_000

/** What a problem document says, as a message. */
export function errorMessage(thrown: unknown, more: object = {}): object {
  const { code, detail, hint } = problemOf(thrown).document
  return { kind: 'error', ...more, code, detail, hint }
}

/** JSON and bytes in one message: the length of the JSON as a big-endian uint32, the JSON, the bytes. */
export function binaryMessage(about: object, bytes: Uint8Array): Buffer {
  const json = Buffer.from(JSON.stringify(about))
  const head = Buffer.alloc(4)
  head.writeUInt32BE(json.length)
  return Buffer.concat([head, json, bytes])
}

export type Wire = Pick<Writable, 'cork' | 'uncork'>

/** To be called before anything is sent: what is sent in one turn leaves together, in one call of the system instead of one each. */
export function together(wire: Wire): () => void {
  let isCorked = false
  return () => {
    if (isCorked) return
    isCorked = true
    wire.cork()
    setImmediate(() => {
      isCorked = false
      wire.uncork()
    })
  }
}
