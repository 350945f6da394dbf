/**
 * What closes the loop unaided. For the simulated street: its own truth as labels, every frame of the first minute and
 * two a second after that, and a first training when the minute is over. For footage with labels: training when its
 * labelled range has been prepared.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { requestTraining } from '@frameloop/cloud/train/request'
import { sceneHeight, sceneWidth, sceneZones, truthAt } from '@frameloop/edge-agent/capture/scene'
import type { Pool } from '@frameloop/kit/postgres'
import type { EpochMs } from '@frameloop/kit/units'
import type { ZoneShape } from '@frameloop/stream-processors/features/prepare'
import { importLabels, type LabelLine } from './label-file.ts'

export const simulatedZones: readonly ZoneShape[] = sceneZones.map((zone) => ({ ...zone, pictureWidth: sceneWidth, pictureHeight: sceneHeight }))

const firstMinute = 60_000
const everyAfterwards = 500

export interface Demo {
  readonly pool: Pool
  readonly labelsUrl: string
  readonly cameraId: string
  readonly task: string
  readonly say: (text: string) => void
}

async function hasChampion(pool: Pool, task: string): Promise<boolean> {
  const { rowCount } = await pool.query("select 1 from roles_now where task = $1 and alias = 'champion'", [task])
  return (rowCount ?? 0) > 0
}

/** A run that failed (MLflow was busy, say) is asked for again after a minute, so often altogether. */
const mostAsked = 3

/** Asks unless it was asked before, and says whether there is anything to wait for still. */
async function askOnce(demo: Demo, cause: 'simulator' | 'footage', range: { readonly from: number | null; readonly until: number | null }): Promise<boolean> {
  const { rows } = await demo.pool.query<{ state: string; is_recent: boolean }>(
    `select state, coalesce(ended_at > now() - interval '1 minute', true) as is_recent from training_runs
     where task = $1 and cause = $2 and camera_id = $3 and from_offset_us is not distinct from $4 and until_offset_us is not distinct from $5`,
    [demo.task, cause, demo.cameraId, range.from, range.until],
  )
  if (rows.some(({ state }) => state === 'succeeded') || rows.length >= mostAsked) return false
  if (rows.some(({ state, is_recent: isRecent }) => state !== 'failed' || isRecent)) return true
  await requestTraining(demo.pool, {
    task: demo.task,
    cameraId: demo.cameraId,
    fromOffsetUs: range.from,
    untilOffsetUs: range.until,
    fromTime: null,
    untilTime: null,
    cause,
    requestedBy: cause,
    seed: 1,
    promote: false,
    evidence: {},
  })
  demo.say(`training of ${demo.task} on ${demo.cameraId} requested`)
  return true
}

export async function runSimulatorTruth(demo: Demo, seed: number, signal: AbortSignal): Promise<void> {
  let since = 0
  let begun: number | undefined
  while (!signal.aborted) {
    try {
      const { rows } = await demo.pool.query<{ media_offset_us: number }>(
        'select media_offset_us from features where camera_id = $1 and media_offset_us > $2 order by media_offset_us limit 500',
        [demo.cameraId, since],
      )
      const first = await demo.pool.query<{ first: number | null }>('select min(media_offset_us) as first from features where camera_id = $1', [demo.cameraId])
      begun = first.rows[0]?.first ?? begun
      const labels = rows.flatMap(({ media_offset_us }): LabelLine[] => {
        const ms = media_offset_us / 1000
        if (begun !== undefined && media_offset_us - begun > firstMinute * 1000 && ms % everyAfterwards >= 200) return []
        return truthAt(seed, ms).map(({ zone, label }) => ({ line: 0, zone, label, mediaOffsetMs: ms }))
      })
      if (labels.length > 0) await importLabels(demo.labelsUrl, labels, { cameraId: demo.cameraId, task: demo.task, source: 'simulator' }, () => {})
      since = rows.at(-1)?.media_offset_us ?? since
      if (begun !== undefined && since - begun > firstMinute * 1000 && !(await hasChampion(demo.pool, demo.task))) await askOnce(demo, 'simulator', { from: null, until: null })
    } catch {
      // the database or the labels API is being restarted: the same frames are asked for again
    }
    await sleep(1_000, undefined, { signal }).catch(() => {})
  }
}

/** The last moment that labels speak of: in the footage, ms, or by the clock; undefined where they name frames, which are there already. */
export function lastMoment(labels: readonly LabelLine[]): { readonly offsetMs?: number; readonly at?: EpochMs } {
  const last: { offsetMs?: number; at?: EpochMs } = {}
  for (const { mediaOffsetMs, frameAt } of labels) {
    if (mediaOffsetMs !== undefined) last.offsetMs = Math.max(last.offsetMs ?? 0, mediaOffsetMs)
    // one that is no time was refused where it was imported
    const at = Date.parse(frameAt ?? '')
    if (!Number.isNaN(at)) last.at = Math.max(last.at ?? 0, at)
  }
  return last
}

export async function trainWhenPrepared(demo: Demo, labels: readonly LabelLine[], signal: AbortSignal): Promise<void> {
  const { offsetMs, at } = lastMoment(labels)
  const offsetUs = offsetMs === undefined ? undefined : Math.round(offsetMs * 1000)
  while (!signal.aborted) {
    try {
      const { rows } = await demo.pool.query<{ offset: number | null; at: Date | null }>(
        'select max(media_offset_us) as offset, max(frame_at) as at from features where camera_id = $1',
        [demo.cameraId],
      )
      const [prepared] = rows
      const isPrepared = (offsetUs === undefined || (prepared?.offset ?? -1) >= offsetUs) && (at === undefined || (prepared?.at?.getTime() ?? 0) >= at)
      if (isPrepared && !(await askOnce(demo, 'footage', offsetUs === undefined ? { from: null, until: null } : { from: 0, until: offsetUs + 1 }))) return
    } catch {
      // the database is being restarted: it is asked again
    }
    await sleep(1_000, undefined, { signal }).catch(() => {})
  }
}
