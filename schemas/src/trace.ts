/** W3C Trace Context in Kafka headers: one trace id from the capture of a picture to its prediction. */
import { randomFillSync } from 'node:crypto'

const pattern = /^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$/

/** Random bytes are drawn in thousands: one call costs more than the ids of a record. */
const drawn = Buffer.alloc(8_192)
let used = drawn.length

function randomHex(bytes: number): string {
  if (used + bytes > drawn.length) {
    randomFillSync(drawn)
    used = 0
  }
  used += bytes
  return drawn.toString('hex', used - bytes, used)
}

/** A new root: `00-{trace}-{span}-01`. */
export function newTraceparent(): string {
  return `00-${randomHex(16)}-${randomHex(8)}-01`
}

/** The same trace with a new span; a new trace when the parent is unreadable. */
export function childTraceparent(parent: string | undefined): string {
  const traceId = traceIdOf(parent)
  return traceId === '' ? newTraceparent() : `00-${traceId}-${randomHex(8)}-01`
}

/** 32 hex digits, or empty. */
export function traceIdOf(traceparent: string | undefined): string {
  return (traceparent && pattern.exec(traceparent)?.[1]) ?? ''
}
