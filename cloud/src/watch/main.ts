/**
 * Starts the watcher: compares the champion's last labelled answers with the truth and asks for training when they are bad;
 * lets the champion before a new one answer beside it and take its place again when it proves better;
 * compares what is served with what the path of training makes of the same pictures and raises an alarm when it is not the same;
 * tells MLflow's aliases who serves.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { openHealth } from '@frameloop/kit/health'
import { openKafka } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { Gauge } from '@frameloop/kit/metrics'
import { type ObjectStore, openObjectStore } from '@frameloop/kit/object-store'
import { databaseNotReady, openPool, type Pool, type Sql } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { pixelWork } from '@frameloop/stream-processors/pixels/pixel-work'
import { CloudSettings } from '../config.ts'
import { isUnseen, labelOfPrediction } from '../labels/labels.ts'
import { openMlflow } from '../models/mlflow.ts'
import { decideRoles, followAliases, promote, retire, rollback, selectChampions } from '../models/roles.ts'
import { runOutbox } from '../outbox.ts'
import { evaluate, figuresOf, type Judged } from '../train/evaluate.ts'
import { compareLive, sayDifferent } from '../train/live-sample.ts'
import { requestTraining } from '../train/request.ts'
import { type BothAnswered, judgeProbation } from './probation.ts'
import { judgeQuality, liveFigures } from './retrain-policy.ts'

const interval = 5_000
const sampleInterval = 60_000
/** The window: enough to be steady, short enough to notice a change within a minute or two. */
const lastAnswers = 240
/** After this both have been loaded by every replica. */
const settling = 20_000

interface Champion {
  readonly task: string
  readonly version: string
  readonly cut_at: Date
}

async function selectServing(pool: Pool): Promise<Champion[]> {
  const { rows } = await pool.query<Champion>(
    "select r.task, r.version, m.cut_at from roles_now r join model_versions m on m.task = r.task and m.version = r.version where r.alias = 'champion' order by r.task",
  )
  return rows
}

/** The champion's newest answers that somebody labelled, about frames captured after its dataset was cut. */
async function selectJudged(pool: Pool, { task, version, cut_at }: Champion): Promise<Judged[]> {
  const { rows } = await pool.query<Judged>(
    `select p.camera_id || ' ' || p.zone as zone, l.label as truth, p.answer from predictions p
     join lateral ${labelOfPrediction} l on true
     where p.task = $1 and p.model_version = $2 and p.frame_at > $3 and p.answered_at > now() - interval '10 minutes' and ${isUnseen('$3')}
     order by p.frame_at desc limit $4`,
    [task, version, cut_at, lastAnswers],
  )
  return rows
}

/** Whom the new champion of a task is judged beside. */
interface OnProbation {
  readonly version: string
  /** Empty where there was none. */
  readonly before: string
  /** Whether its time is not over. */
  readonly is_judged: boolean
  readonly shadow: string
  /** Whether the shadow is there because we asked for it. */
  readonly is_ours: boolean
  /** Since when both have the roles they are judged in. */
  readonly both_since: Date
  readonly has_challenger: boolean
}

async function selectProbation(sql: Sql, task: string): Promise<OnProbation | undefined> {
  const [, before = ''] = await selectChampions(sql, task)
  const { rows } = await sql.query<Omit<OnProbation, 'before'>>(
    `select c.version, coalesce(c.probation_until > now(), false) as is_judged, coalesce(s.version, '') as shadow,
       coalesce(s.decided_by = 'watch', false) as is_ours, greatest(s.decided_at, c.decided_at) as both_since, coalesce(x.version, '') <> '' as has_challenger
     from roles_now c left join roles_now s on s.task = c.task and s.alias = 'shadow' left join roles_now x on x.task = c.task and x.alias = 'challenger'
     where c.task = $1 and c.alias = 'champion'`,
    [task],
  )
  return rows[0] && { ...rows[0], before }
}

async function selectBothAnswered(sql: Sql, task: string, { version, before }: OnProbation, since: Date): Promise<(BothAnswered & { readonly at: Date })[]> {
  const { rows } = await sql.query<BothAnswered & { readonly at: Date }>(
    `select p.camera_id || ' ' || p.zone as zone, l.label as truth, p.answer as before, p.predict_ms as "beforeMs", n.answer as now, n.predict_ms as "nowMs", p.answered_at as at
     from predictions p
     left join predictions n on n.frame_id = p.frame_id and n.frame_at = p.frame_at and n.zone = p.zone and n.task = p.task and n.model_version = $2
     left join lateral ${labelOfPrediction} l on true
     where p.task = $1 and p.model_version = $3 and p.answered_at > $4
     order by p.answered_at desc limit 2000`,
    [task, version, before, since],
  )
  return rows
}

/** Lets the champion before a new one answer in its shadow, and makes it champion again when it proves better. Inside `decideRoles`: what a person decides meanwhile waits, and stands. */
async function watchProbation(sql: Sql, task: string, log: Log): Promise<void> {
  const roles = await selectProbation(sql, task)
  if (!roles) return
  const { version, before, shadow, is_ours: isOurs, both_since: since } = roles
  const hasShadow = shadow !== ''
  if (!roles.is_judged || before === '') {
    if (hasShadow && isOurs) await retire(sql, task, 'shadow', 'watch', `the probation of version ${version} is over`)
    return
  }
  if (shadow !== before) {
    // somebody's own shadow stays
    if (!hasShadow || isOurs) await promote(sql, task, before, { alias: 'shadow' }, 'watch', `champion before version ${version}, which is on probation`)
    return
  }
  const asked = await selectBothAnswered(sql, task, roles, since)
  // a challenger answers some of them in its place
  const settled = roles.has_challenger ? [] : asked.filter(({ at }) => at.getTime() > since.getTime() + settling)
  const verdict = judgeProbation(asked, settled)
  if (verdict.kind !== 'back') return
  await rollback(sql, task, 'watch', `version ${version} did not pass its probation: ${verdict.why}`)
  await sql.query("insert into decisions (task, decision, evidence) values ($1, 'rollback', $2)", [task, { why: verdict.why, version, before, asked: asked.length }])
  log.error({ task, version, before }, `the new model did not pass its probation: ${verdict.why}`)
}

/** The figures of each task that were written last: only what has changed is written. */
const written = new Map<string, string>()

async function watch(pool: Pool, champion: Champion, gauge: Gauge<'task'>): Promise<void> {
  const judged = await selectJudged(pool, champion)
  if (judged.length === 0) return
  const overall = figuresOf(judged)
  const { perZone } = evaluate(judged)
  gauge.set({ task: champion.task }, overall.balancedAccuracy)
  const figuresNow = JSON.stringify([champion.version, overall, perZone])
  if (written.get(champion.task) !== figuresNow) {
    await pool.query(
      'insert into quality_windows (task, window_end, model_version, answers, accuracy, balanced_accuracy, majority_accuracy, per_zone) values ($1, now(), $2, $3, $4, $5, $6, $7)',
      [champion.task, champion.version, overall.n, overall.accuracy, overall.balancedAccuracy, overall.majorityAccuracy, perZone],
    )
    await pool.query("delete from quality_windows where task = $1 and window_end < now() - interval '30 days'", [champion.task])
    written.set(champion.task, figuresNow)
  }
  const { rows } = await pool.query<{ running: boolean; last: Date | null; in_vain: number }>(
    `select coalesce(bool_or(state not in ('succeeded', 'failed')), false) as running, max(requested_at) as last,
       (select count(*)::int from decisions where task = $1 and decision = 'retrain'
          and id > coalesce((select max(id) from decisions where task = $1 and decision = 'fine'), 0)) as in_vain
     from training_runs where task = $1`,
    [champion.task],
  )
  const state = rows[0]
  const figures = liveFigures(judged)
  const verdict = judgeQuality(figures, { running: state?.running ?? false, lastRequest: state?.last?.getTime(), inVain: state?.in_vain ?? 0 }, Date.now())
  if (verdict.kind === 'fine' && state && state.in_vain > 0)
    await pool.query("insert into decisions (task, decision, evidence) values ($1, 'fine', $2)", [champion.task, { ...figures, modelVersion: champion.version, why: verdict.why }])
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
          for (const { task } of await selectServing(pool)) await watchInputs(pool, store, task, inputs, log)
        } catch (thrown) {
          log.warn({ err: thrown }, 'live inputs were not compared')
        }
        await sleep(sampleInterval, undefined, { signal }).catch(() => {})
      }
    },
    fail,
  )
  const mlflow = openMlflow(config.mlflowTrackingUri)
  let isAway = false
  lifetime.run(
    'aliases',
    async (signal) => {
      while (!signal.aborted) {
        try {
          await followAliases(pool, mlflow)
          isAway = false
        } catch (thrown) {
          if (!isAway) log.warn({ err: thrown }, "MLflow's aliases wait")
          isAway = true
        }
        await sleep(interval, undefined, { signal }).catch(() => {})
      }
    },
    fail,
  )
  lifetime.run(
    'watch',
    async (signal) => {
      while (!signal.aborted) {
        try {
          for (const { task } of await selectServing(pool)) await decideRoles(pool, task, (sql) => watchProbation(sql, task, log))
          for (const champion of await selectServing(pool)) await watch(pool, champion, gauge)
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
