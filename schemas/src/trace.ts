/** W3C Trace Context in Kafka headers: one trace id from the capture of a picture to its prediction. */
import { randomFillSync } from 'node:crypto'
import type { EpochMs } from '@frameloop/kit/units'

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

const since2020 = Date.UTC(2020, 0)

/** Of an answer that nobody keeps: when it was given, and the first eight hex digits of the model's digest. */
export interface AnswerTrace {
  readonly answeredAt: EpochMs
  readonly digest: string
}

/**
 * The trace id of an answer to a picture that was sent along: 40 bits of milliseconds since 2020, 32 of the model's digest,
 * and 56 random ones, where W3C Trace Context level 2 has them. So it can be followed to its model and data without being
 * written down anywhere.
 */
export function answerTraceId(digest: string, answeredAt: EpochMs): string {
  return `${(answeredAt - since2020).toString(16).padStart(10, '0')}${digest.slice(0, 8)}${randomHex(7)}`
}

export function readAnswerTrace(traceId: string): AnswerTrace {
  return { answeredAt: Number.parseInt(traceId.slice(0, 10), 16) + since2020, digest: traceId.slice(10, 18) }
}
