/** Starts the watcher: compares the champion's last labelled answers with the truth and asks for training when they are bad. */
import { setTimeout as sleep } from 'node:timers/promises'
import { openHealth } from '@frameloop/kit/health'
import { openKafka } from '@frameloop/kit/kafka'
import { Gauge } from '@frameloop/kit/metrics'
import { databaseNotReady, openPool, type Pool } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { CloudSettings } from '../config.ts'
import { labelOfPrediction } from '../labels/labels.ts'
import { runOutbox } from '../outbox.ts'
import { evaluate, figuresOf, type Judged } from '../train/evaluate.ts'
import { requestTraining } from '../train/request.ts'
import { judgeQuality } from './retrain-policy.ts'

const interval = 5_000
/** The window: enough to be steady, short enough to notice a change within a minute or two. */
const lastAnswers = 240

interface Champion {
  readonly task: string
  readonly version: string
  readonly cut_at: Date
}

async function selectChampions(pool: Pool): Promise<Champion[]> {
  const { rows } = await pool.query<Champion>(
    "select distinct on (p.task) p.task, p.version, m.cut_at from promotions p join model_versions m on m.task = p.task and m.version = p.version where p.alias = 'champion' order by p.task, p.id desc",
  )
  return rows
}

/** The champion's newest answers that somebody labelled, about frames captured after its dataset was cut. */
async function selectJudged(pool: Pool, { task, version, cut_at }: Champion): Promise<Judged[]> {
  const { rows } = await pool.query<Judged>(
    `select p.camera_id || ' ' || p.zone as zone, l.label as truth, p.answer from predictions p
     join labels l on ${labelOfPrediction}
     where p.task = $1 and p.model_version = $2 and p.frame_at > $3 and p.answered_at > now() - interval '10 minutes'
     order by p.frame_at desc limit $4`,
    [task, version, cut_at, lastAnswers],
  )
  return rows
}

async function watch(pool: Pool, champion: Champion, gauge: Gauge<'task'>): Promise<void> {
  const judged = await selectJudged(pool, champion)
  if (judged.length === 0) return
  const overall = figuresOf(judged)
  const { perZone } = evaluate(judged)
  gauge.set({ task: champion.task }, overall.balancedAccuracy)
  await pool.query(
    'insert into quality_windows (task, window_end, model_version, answers, accuracy, balanced_accuracy, majority_accuracy, per_zone) values ($1, now(), $2, $3, $4, $5, $6, $7)',
    [champion.task, champion.version, overall.n, overall.accuracy, overall.balancedAccuracy, overall.majorityAccuracy, perZone],
  )
  const { rows } = await pool.query<{ running: boolean; last: Date | null }>(
    "select coalesce(bool_or(state not in ('succeeded', 'failed')), false) as running, max(requested_at) as last from training_runs where task = $1",
    [champion.task],
  )
  const state = rows[0]
  const figures = { n: overall.n, accuracy: overall.accuracy, balancedAccuracy: overall.balancedAccuracy, classes: Object.keys(overall.recall).length }
  const verdict = judgeQuality(figures, { running: state?.running ?? false, lastRequest: state?.last?.getTime() }, Date.now())
  if (verdict.kind !== 'retrain') return
  const evidence = { ...figures, modelVersion: champion.version, why: verdict.why, perZone }
  await pool.query("insert into decisions (task, decision, evidence) values ($1, 'retrain', $2)", [champion.task, evidence])
  await requestTraining(pool, {
    task: champion.task,
    cameraId: null,
    fromOffsetUs: null,
    untilOffsetUs: null,
    fromTime: null,
    untilTime: null,
    cause: 'quality',
    requestedBy: 'watch',
    seed: 1,
    promote: false,
    evidence,
  })
}

await runProcess('watch', CloudSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'watch'), (open) => open.end())
  const producer = openKafka(config.kafkaBrokers, 'watch', log).producer()
  await producer.connect()
  lifetime.own('producer', producer, (open) => open.disconnect())
  lifetime.run('outbox', (signal) => runOutbox(pool, producer, openCodec(openRegistry(config.schemaRegistryUrl)), log, signal), fail)
  const gauge = new Gauge({ name: 'frameloop_live_balanced_accuracy', help: 'Of the champion, over its last labelled answers', labelNames: ['task'], registers: [metrics] })
  lifetime.run(
    'watch',
    async (signal) => {
      while (!signal.aborted) {
        try {
          for (const champion of await selectChampions(pool)) await watch(pool, champion, gauge)
        } catch (thrown) {
          log.warn({ err: thrown }, 'watching waits for the database')
        }
        await sleep(interval, undefined, { signal }).catch(() => {})
      }
    },
    fail,
  )
  const notReady = () => databaseNotReady(pool)
  await openHealth({ name: 'watch', metrics, notReady }, config, lifetime)
})
