/** Asks for a training run: the row is the queue, the event is its record. */
import { randomUUID } from 'node:crypto'
import { inTransaction, type Pool } from '@frameloop/kit/postgres'
import { topics } from '@frameloop/schemas/topics'
import { enqueue } from '../outbox.ts'
import type { DatasetQuery } from './dataset.ts'

export interface TrainingWish extends DatasetQuery {
  readonly cause: 'manual' | 'footage' | 'simulator' | 'quality'
  readonly requestedBy: string
  readonly seed: number
  readonly promote: boolean
  readonly evidence: Readonly<Record<string, unknown>>
}

/** Returns the request's id. */
export async function requestTraining(pool: Pool, wish: TrainingWish): Promise<string> {
  const requestId = randomUUID()
  const time = (at: number | null): Date | null => (at === null ? null : new Date(at))
  await inTransaction(pool, async (client) => {
    await client.query(
      'insert into training_runs (request_id, task, cause, requested_by, camera_id, from_offset_us, until_offset_us, from_time, until_time, seed, force_promote, evidence) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)',
      [
        requestId,
        wish.task,
        wish.cause,
        wish.requestedBy,
        wish.cameraId,
        wish.fromOffsetUs,
        wish.untilOffsetUs,
        time(wish.fromTime),
        time(wish.untilTime),
        wish.seed,
        wish.promote,
        wish.evidence,
      ],
    )
    await enqueue(client, topics.trainingRequested, wish.task, requestId, {
      requestId,
      task: wish.task,
      cause: wish.cause,
      requestedBy: wish.requestedBy,
      cameraId: wish.cameraId,
      fromOffsetUs: wish.fromOffsetUs,
      untilOffsetUs: wish.untilOffsetUs,
      fromTime: wish.fromTime,
      untilTime: wish.untilTime,
      seed: wish.seed,
      promote: wish.promote,
      requestedAt: Date.now(),
      evidence: JSON.stringify(wish.evidence),
    })
  })
  return requestId
}
