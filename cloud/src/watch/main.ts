/**
 * Starts the watcher: compares the champion's last labelled answers with the truth and asks for training when they are bad;
 * compares what is served with what the path of training makes of the same pictures and raises an alarm when it is not the same.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { openHealth } from '@frameloop/kit/health'
import { openKafka } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { Gauge } from '@frameloop/kit/metrics'
import { type ObjectStore, openObjectStore } from '@frameloop/kit/object-store'
import { databaseNotReady, openPool, type Pool } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { pixelWork } from '@frameloop/stream-processors/pixels/pixel-work'
import { CloudSettings } from '../config.ts'
import { labelOfPrediction } from '../labels/labels.ts'
import { runOutbox } from '../outbox.ts'
import { evaluate, figuresOf, type Judged } from '../train/evaluate.ts'
import { compareLive, sayDifferent } from '../train/live-sample.ts'
import { requestTraining } from '../train/request.ts'
import { judgeQuality } from './retrain-policy.ts'

const interval = 5_000
const sampleInterval = 60_000
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

/** What was found about each task's live inputs the last time; empty where they are as they should be. */
const alarms = new Map<string, string>()

async function watchInputs(pool: Pool, store: ObjectStore, task: string, gauge: Gauge<'task'>, log: Log): Promise<void> {
  const sample = await compareLive(pool, store, pixelWork, task)
  if (sample.compared === 0) return
  gauge.set({ task }, sample.different.length / sample.compared)
  const found = sayDifferent(sample)
  if (found && !alarms.get(task)) {
    log.error({ task, ...sample }, found)
    await pool.query("insert into decisions (task, decision, evidence) values ($1, 'alarm', $2)", [task, { why: found, ...sample }])
  }
  alarms.set(task, found)
}

await runProcess('watch', CloudSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'watch'), (open) => open.end())
  const producer = openKafka(config.kafkaBrokers, 'watch', log).producer()
  await producer.connect()
  lifetime.own('producer', producer, (open) => open.disconnect())
  lifetime.run('outbox', (signal) => runOutbox(pool, producer, openCodec(openRegistry(config.schemaRegistryUrl)), log, signal), fail)
  const gauge = new Gauge({ name: 'frameloop_live_balanced_accuracy', help: 'Of the champion, over its last labelled answers', labelNames: ['task'], registers: [metrics] })
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const inputs = new Gauge({
    name: 'frameloop_live_inputs_different',
    help: 'Share of sampled live inputs that are not what the path of training makes of the same pictures',
    labelNames: ['task'],
    registers: [metrics],
  })
  lifetime.run(
    'live inputs',
    async (signal) => {
      while (!signal.aborted) {
        try {
          for (const { task } of await selectChampions(pool)) await watchInputs(pool, store, task, inputs, log)
        } catch (thrown) {
          log.warn({ err: thrown }, 'live inputs were not compared')
        }
        await sleep(sampleInterval, undefined, { signal }).catch(() => {})
      }
    },
    fail,
  )
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
  const degraded = () => Object.fromEntries([...alarms].filter(([, found]) => found !== ''))
  await openHealth({ name: 'watch', metrics, notReady, degraded }, config, lifetime)
})
