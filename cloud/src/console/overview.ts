/** What the page shows beside the live answers: cameras, stages, models, runs, live quality. Read-only. */
import type { Pool } from '@frameloop/kit/postgres'
import { probeCameraId } from '@frameloop/schemas/ids'
import { isUnseen, labelOfPrediction } from '../labels/labels.ts'

export interface StageFigures {
  readonly stage: string
  readonly received: number
  readonly rejected: number
  readonly lag: number
  readonly up: boolean
}

/** Sums a counter or gauge of a process's metrics text, over all labels. */
export function sumOf(text: string, metric: string): number {
  let sum = 0
  for (const line of text.split('\n')) if (line.startsWith(`${metric}{`) || line.startsWith(`${metric} `)) sum += Number(line.slice(line.lastIndexOf(' ') + 1)) || 0
  return sum
}

export async function readStages(health: Readonly<Record<string, string>>): Promise<StageFigures[]> {
  return Promise.all(
    ['agent', 'validate', 'extract', 'features', 'serve', 'catalog'].map(async (stage) => {
      const text = await fetch(`${health[stage]}/metrics`, { signal: AbortSignal.timeout(2_000) })
        .then((answer) => answer.text())
        .catch(() => undefined)
      if (text === undefined) return { stage, received: 0, rejected: 0, lag: 0, up: false }
      const received = stage === 'agent' ? sumOf(text, 'frameloop_agent_captured_total') : sumOf(text, 'frameloop_stage_received_total')
      return { stage, received, rejected: sumOf(text, 'frameloop_stage_rejected_total'), lag: sumOf(text, 'frameloop_stage_lag_records'), up: true }
    }),
  )
}

export interface Overview {
  readonly cameras: readonly Readonly<Record<string, unknown>>[]
  readonly models: readonly Readonly<Record<string, unknown>>[]
  readonly runs: readonly Readonly<Record<string, unknown>>[]
  readonly quality: readonly Readonly<Record<string, unknown>>[]
  readonly rejections: readonly Readonly<Record<string, unknown>>[]
  readonly stages: readonly StageFigures[]
  readonly at: number
}

/** Live answers of the champions against labels, only about frames captured after their dataset was cut. */
export const liveQuality = `
  with answered as (
    select p.task, p.model_version, p.zone, l.label as truth, p.answer
    from roles_now s join model_versions m on m.task = s.task and m.version = s.version
    join predictions p on p.task = s.task and p.model_version = s.version and p.frame_at > m.cut_at and p.answered_at > now() - interval '10 minutes'
    join lateral ${labelOfPrediction} l on true
    where s.alias = 'champion' and ${isUnseen('m.cut_at')}),
  recalls as (select task, model_version, truth, count(*)::int as n, avg((answer = truth)::int)::float8 as recall from answered group by task, model_version, truth)
  select task, model_version as "modelVersion", sum(n)::int as n, avg(recall)::float8 as "balancedAccuracy", (sum(n * recall) / sum(n))::float8 as accuracy, (max(n)::float8 / sum(n))::float8 as "majorityAccuracy", count(*)::int as classes
  from recalls group by task, model_version order by task`

export async function readOverview(pool: Pool, health: Readonly<Record<string, string>>): Promise<Overview> {
  const rows = async (text: string) => (await pool.query<Record<string, unknown>>(text)).rows
  const [cameras, models, runs, quality, rejections, stages] = await Promise.all([
    rows(
      `select distinct on (camera_id) camera_id as "cameraId", state, message, source_kind as "sourceKind", frames_per_second as "framesPerSecond", highest_seq as "highestSeq", reported_at as "reportedAt", source_kind <> 'upload' and state <> 'ended' and reported_at < now() - interval '20 seconds' as "isSilent" from captures where camera_id <> '${probeCameraId}' order by camera_id, state = 'ended', reported_at desc`,
    ),
    rows(`select m.task, m.version, m.created_at as "createdAt", m.run_id as "runId", m.dataset_digest as "datasetDigest", (m.metrics->>'balancedAccuracy')::float8 as "balancedAccuracy", (m.metrics->>'n')::int as n, s.alias, s.reason
      from model_versions m left join roles_now s on s.task = m.task and s.version = m.version order by s.alias is not null desc, m.created_at desc limit 8`),
    rows(
      `select request_id as "requestId", task, cause, state, epoch, epochs, loss, version, promoted, reason, requested_at as "requestedAt", ended_at as "endedAt" from training_runs order by requested_at desc limit 6`,
    ),
    rows(liveQuality),
    rows('select stage, reason, message, camera_id as "cameraId", at from dead_letters order by at desc limit 5'),
    readStages(health),
  ])
  return { cameras, models, runs, quality, rejections, stages, at: Date.now() }
}
