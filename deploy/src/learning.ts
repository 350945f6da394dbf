/** `train`, `predictions export`. */
import { setTimeout as sleep } from 'node:timers/promises'
import { requestTraining } from '@frameloop/cloud/train/request'
import { Fault } from '@frameloop/kit/fault'
import type { Pool } from '@frameloop/kit/postgres'
import { needsReference, type Preprocessing, preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { timeOf } from './times.ts'

export interface TrainFlags {
  readonly camera?: string
  readonly fromOffsetMs?: number
  readonly untilOffsetMs?: number
  readonly from?: string
  readonly to?: string
  readonly seed: number
  readonly wait?: boolean
  readonly promote?: boolean
  readonly json?: boolean
}

interface RunRow {
  readonly state: string
  readonly epoch: number
  readonly epochs: number
  readonly loss: number | null
  readonly run_id: string
  readonly version: string
  readonly promoted: boolean
  readonly reason: string
  readonly dataset_digest: string
}

const preparedLimit = 180_000
const runLimit = 900_000

const offset = (ms: number | undefined): number | null => (ms === undefined ? null : Math.round(ms * 1000))

/** Waits until every labelled offset of the range has been prepared as the task wants it now; says how far it is. */
async function waitForRange(pool: Pool, task: string, preprocessing: Preprocessing, flags: TrainFlags, say: (text: string) => void): Promise<void> {
  const deadline = Date.now() + preparedLimit
  for (let told = 0; ; ) {
    const { rows } = await pool.query<{ labelled: number; prepared: number }>(
      `select count(*)::int as labelled, count(*) filter (where exists (select 1 from features f where f.camera_id = l.camera_id and f.media_offset_us = l.media_offset_us and f.preprocessing = $5
         and f.reference = coalesce((select r.sha256 from reference_pictures r where $6 and r.camera_id = f.camera_id order by r.version desc limit 1), '')))::int as prepared
       from (select distinct camera_id, media_offset_us from labels where task = $1 and superseded_at is null and media_offset_us is not null and ($2::text is null or camera_id = $2)
         and ($3::bigint is null or media_offset_us >= $3) and ($4::bigint is null or media_offset_us < $4)) l`,
      [task, flags.camera ?? null, offset(flags.fromOffsetMs), offset(flags.untilOffsetMs), preprocessingDigest(preprocessing), needsReference(preprocessing)],
    )
    const { labelled = 0, prepared = 0 } = rows[0] ?? {}
    if (prepared >= labelled) return
    if (Date.now() > deadline && prepared > 0) {
      // what is past is not prepared anew, unless its footage is played again
      say(`${prepared} of ${labelled} labelled frames are prepared as the task wants them after ${preparedLimit / 1000} s: it learns from those`)
      return
    }
    if (Date.now() > deadline) throw new Fault('TIMED_OUT', `Only ${prepared} of ${labelled} labelled frames of the range have been prepared after ${preparedLimit / 1000} s`)
    if (Date.now() - told > 5_000) {
      told = Date.now()
      say(`waiting for the range: ${prepared} of ${labelled} labelled frames prepared`)
    }
    await sleep(500)
  }
}

export async function train(pool: Pool, task: string, flags: TrainFlags, print: (text: string) => void): Promise<void> {
  const { rows: tasks } = await pool.query<{ preprocessing: Preprocessing }>('select preprocessing from tasks where task = $1', [task])
  if (!tasks[0]) throw new Fault('TASK_UNKNOWN', `There is no task ${task}`)
  const say = (text: string): void => {
    if (!flags.json) print(text)
  }
  if (flags.wait) await waitForRange(pool, task, tasks[0].preprocessing, flags, say)
  const requestId = await requestTraining(pool, {
    task,
    cameraId: flags.camera ?? null,
    fromOffsetUs: offset(flags.fromOffsetMs),
    untilOffsetUs: offset(flags.untilOffsetMs),
    fromTime: timeOf(flags.from, '--from')?.getTime() ?? null,
    untilTime: timeOf(flags.to, '--to')?.getTime() ?? null,
    cause: 'manual',
    requestedBy: 'command line',
    seed: flags.seed,
    promote: flags.promote ?? false,
    evidence: {},
  })
  if (!flags.wait) {
    print(flags.json ? JSON.stringify({ request: requestId }) : `requested as ${requestId}; follow it on the page or with --wait`)
    return
  }
  const deadline = Date.now() + runLimit
  for (let told = 0; ; ) {
    const { rows } = await pool.query<RunRow>('select state, epoch, epochs, loss, run_id, version, promoted, reason, dataset_digest from training_runs where request_id = $1', [
      requestId,
    ])
    const row = rows[0]
    if (row?.state === 'failed') throw new Fault('RUN_FAILED', `The training run failed: ${row.reason}`)
    if (row?.state === 'succeeded') {
      const { run_id: run, version, promoted, reason, dataset_digest: dataset } = row
      print(
        flags.json
          ? JSON.stringify({ run, version, promoted, reason, dataset })
          : `version ${version} (MLflow run ${run}, dataset ${dataset.slice(0, 12)}…) ${promoted ? 'is champion now' : 'was not promoted'}: ${reason}`,
      )
      return
    }
    if (Date.now() > deadline) throw new Fault('TIMED_OUT', `The run did not end within ${runLimit / 60_000} minutes`)
    if (row && Date.now() - told > 3_000) {
      told = Date.now()
      say(
        row.state === 'training' && row.epochs > 0 ? `training: epoch ${row.epoch} of ${row.epochs}${row.loss === null ? '' : `, loss ${row.loss.toFixed(4)}`}` : `${row.state} …`,
      )
    }
    await sleep(300)
  }
}

/** Answers that were sent; with `shadow` also those that were only recorded. */
export async function exportPredictions(
  pool: Pool,
  flags: { readonly camera: string; readonly task?: string; readonly shadow?: boolean },
  out: NodeJS.WritableStream,
): Promise<void> {
  out.write('frame_id,camera_id,zone,task,media_offset_ms,frame_at,answered_at,answer,confidence,model_version,alias\n')
  let after: [Date, string, string, string, string] = [new Date(0), '00000000-0000-0000-0000-000000000000', '', '', '']
  for (;;) {
    const { rows } = await pool.query<{
      frame_id: string
      camera_id: string
      zone: string
      task: string
      media_offset_us: number | null
      frame_at: Date
      answered_at: Date
      answer: string
      confidence: number
      model_version: string
      alias: string
    }>(
      `select frame_id, camera_id, zone, task, media_offset_us, frame_at, answered_at, answer, confidence, model_version, alias from predictions
       where camera_id = $1 and ($2::text is null or task = $2) and ($8 or alias <> 'shadow') and (answered_at, frame_id, zone, task, model_version) > ($3::timestamptz, $4::uuid, $5, $6, $7)
       order by answered_at, frame_id, zone, task, model_version limit 5000`,
      [flags.camera, flags.task ?? null, ...after, flags.shadow ?? false],
    )
    for (const row of rows)
      out.write(
        `${[row.frame_id, row.camera_id, row.zone, row.task, row.media_offset_us === null ? '' : row.media_offset_us / 1000, row.frame_at.toISOString(), row.answered_at.toISOString(), row.answer, row.confidence, row.model_version, row.alias].join(',')}\n`,
      )
    const last = rows.at(-1)
    if (!last) return
    after = [last.answered_at, last.frame_id, last.zone, last.task, last.model_version]
  }
}
