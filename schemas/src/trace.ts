/** W3C Trace Context in Kafka headers: one trace id from the capture of a picture to its prediction. */
import { randomBytes } from 'node:crypto'

const pattern = /^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$/

/** A new root: `00-{trace}-{span}-01`. */
export function newTraceparent(): string {
  return `00-${randomBytes(16).toString('hex')}-${randomBytes(8).toString('hex')}-01`
}

/** The same trace with a new span; a new trace when the parent is unreadable. */
export function childTraceparent(parent: string | undefined): string {
  const traceId = traceIdOf(parent)
  return traceId === '' ? newTraceparent() : `00-${traceId}-${randomBytes(8).toString('hex')}-01`
}

/** 32 hex digits, or empty. */
export function traceIdOf(traceparent: string | undefined): string {
  return (traceparent && pattern.exec(traceparent)?.[1]) ?? ''
}
