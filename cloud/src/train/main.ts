/** Starts the trainer: takes requests out of training_runs, one at a time. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage } from '@frameloop/kit/fault'
import { openHealth } from '@frameloop/kit/health'
import { openKafka } from '@frameloop/kit/kafka'
import { openObjectStore } from '@frameloop/kit/object-store'
import { databaseNotReady, inTransaction, isDatabaseTransient, openPool, type Pool } from '@frameloop/kit/postgres'
import { retry } from '@frameloop/kit/retry'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { CloudSettings } from '../config.ts'
import { openMlflow } from '../models/mlflow.ts'
import { enqueue, runOutbox } from '../outbox.ts'
import { runTraining, type TrainingRequest } from './run-training.ts'

/** A run that ended its trainer so often (it is too large for the memory, say) is given up: it would be begun again for ever, and others wait. */
const mostAttempts = 3

/** The oldest request; one that a crash left half done is taken again. */
async function claim(pool: Pool): Promise<TrainingRequest | undefined> {
  const { rows } = await pool.query<TrainingRequest>(
    `update training_runs set state = 'preparing', started_at = now(), epoch = 0, attempts = attempts + 1
     where request_id = (select request_id from training_runs where state in ('requested', 'interrupted') order by requested_at limit 1 for update skip locked)
     returning request_id, task, cause, requested_by, camera_id, from_offset_us, until_offset_us, from_time, until_time, seed, force_promote`,
  )
  return rows[0]
}

/** On record and told. Nothing happens where it succeeded, and only the answer to that was lost, or where this was recorded already. */
function recordFailure(pool: Pool, { request_id: requestId, task }: Pick<TrainingRequest, 'request_id' | 'task'>, reason: string): Promise<void> {
  return inTransaction(pool, async (client) => {
    const { rowCount } = await client.query(
      "update training_runs set state = 'failed', reason = $2, ended_at = now() where request_id = $1 and state in ('preparing', 'training', 'interrupted')",
      [requestId, reason],
    )
    if (rowCount !== 1) return
    await enqueue(client, topics.trainingEnded, task, requestId, {
      ...{ requestId, task, runId: '', version: '', state: 'failed', promoted: false, reason, datasetDigest: '', balancedAccuracy: 0, endedAt: Date.now() },
    })
  })
}

/** Runs that nobody works on: what this process has begun is over whenever it asks for another one. */
async function release(pool: Pool): Promise<void> {
  const { rows } = await pool.query<TrainingRequest & { readonly attempts: number }>(
    "update training_runs set state = 'interrupted' where state in ('preparing', 'training') returning request_id, task, attempts",
  )
  for (const run of rows) if (run.attempts >= mostAttempts) await recordFailure(pool, run, `RUN_FAILED: it ended the trainer ${run.attempts} times; the log of train says how`)
}

await runProcess('train', CloudSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'train'), (open) => open.end())
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const codec = openCodec(openRegistry(config.schemaRegistryUrl))
  const producer = openKafka(config.kafkaBrokers, 'train', log).producer()
  await producer.connect()
  lifetime.own('producer', producer, (open) => open.disconnect())
  lifetime.run('outbox', (signal) => runOutbox(pool, producer, codec, log, signal), fail)
  const tools = { pool, brokers: config.kafkaBrokers, codec, store, bucketPrefix: config.bucketPrefix, mlflow: openMlflow(config.mlflowTrackingUri), log }
  await release(pool)
  lifetime.run(
    'trainer',
    async (signal) => {
      let isUnsure = false
      while (!signal.aborted) {
        const request = await claim(pool).catch(() => {
          // it may have been claimed all the same
          isUnsure = true
        })
        if (isUnsure && !request) {
          await release(pool).then(
            () => {
              isUnsure = false
            },
            () => {},
          )
        }
        if (!request) {
          await sleep(500, undefined, { signal }).catch(() => {})
          continue
        }
        log.info({ requestId: request.request_id, task: request.task, cause: request.cause }, 'training started')
        try {
          await runTraining(request, tools, signal)
        } catch (thrown) {
          if (signal.aborted) {
            // whoever stops the trainer says nothing about the run
            await pool.query('update training_runs set attempts = attempts - 1 where request_id = $1', [request.request_id]).catch(() => {})
            return
          }
          const reason = thrown instanceof Fault ? `${thrown.code}: ${thrown.message}` : rootMessage(thrown)
          log.error({ err: thrown, requestId: request.request_id }, 'training failed')
          // until it is recorded nobody asks for another one
          await retry(() => recordFailure(pool, request, reason), { backoff: { first: 500, cap: 10_000 }, isTransient: isDatabaseTransient }, signal).catch((failure: unknown) =>
            log.error({ err: failure }, 'failure not recorded'),
          )
        }
      }
    },
    fail,
  )
  await openHealth(
    {
      name: 'train',
      metrics,
      notReady: () => databaseNotReady(pool),
    },
    config,
    lifetime,
  )
})
