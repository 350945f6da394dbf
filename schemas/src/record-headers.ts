/** Headers of every record: CloudEvents 1.0.2 in Kafka's binary mode, and W3C trace context. */
import type { EpochMs } from '@frameloop/kit/units'

export interface RecordHead {
  /** mediaId, frameId or another id of what the record is about. */
  readonly id: string
  /** Event time. */
  readonly time: EpochMs
  /** Who says so: an agent, a stage. */
  readonly source: string
  readonly traceparent: string
}

/** `type`: name of the Avro record. */
export function headersOf(head: RecordHead, type: string): Record<string, string> {
  const headers: Record<string, string> = {
    ce_specversion: '1.0',
    ce_id: head.id,
    ce_time: new Date(head.time).toISOString(),
    ce_type: `dev.frameloop.${type}`,
    ce_source: `/frameloop/${head.source}`,
    'content-type': 'application/vnd.confluent.avro',
  }
  if (head.traceparent) headers['traceparent'] = head.traceparent
  return headers
}
