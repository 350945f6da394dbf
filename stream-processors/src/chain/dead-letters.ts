/** A record that a stage could not accept: its key and value unchanged, where it came from and why, in headers. */
import { deadLetterTopic } from '@frameloop/schemas/topics'
import type { Produced } from './bus.ts'
import type { BusRecord } from './stage.ts'

export interface Rejection {
  readonly stage: string
  readonly stageVersion: string
  readonly reason: string
  readonly message: string
  readonly attempts: number
}

export function deadLetterOf(record: BusRecord, rejection: Rejection): Produced {
  return {
    topic: deadLetterTopic(record.topic),
    key: record.keyBytes ?? record.key,
    value: record.value,
    headers: {
      ...record.headers,
      'fl-origin-topic': record.topic,
      'fl-origin-partition': String(record.partition),
      'fl-origin-offset': String(record.offset),
      'fl-origin-timestamp': String(record.timestamp),
      'fl-stage': rejection.stage,
      'fl-stage-version': rejection.stageVersion,
      'fl-reason': rejection.reason,
      'fl-message': rejection.message.slice(0, 500),
      'fl-attempts': String(rejection.attempts),
    },
  }
}
