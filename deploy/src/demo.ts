/**
 * What closes the loop unaided. For the simulated street: its own truth as labels, every frame of the first minute and
 * two a second after that, and a first training when the minute is over. For footage with labels: training when its
 * labelled range has been prepared.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { requestTraining } from '@frameloop/cloud/train/request'
import { sceneHeight, sceneWidth, sceneZones, truthAt } from '@frameloop/edge-agent/capture/scene'
import type { Pool } from '@frameloop/kit/postgres'
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
  const { rowCount } = await pool.query("select 1 from promotions where task = $1 and alias = 'champion' limit 1", [task])
  return (rowCount ?? 0) > 0
}

async function askOnce(demo: Demo, cause: 'simulator' | 'footage', range: { readonly from: number | null; readonly until: number | null }): Promise<void> {
  const { rowCount } = await demo.pool.query('select 1 from training_runs where task = $1 and cause = $2 and (from_offset_us is not distinct from $3) limit 1', [
    demo.task,
    cause,
    range.from,
  ])
  if ((rowCount ?? 0) > 0 || (await hasChampion(demo.pool, demo.task))) return
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
  demo.say(`training of ${demo.task} requested`)
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
      if (begun !== undefined && since - begun > firstMinute * 1000) await askOnce(demo, 'simulator', { from: null, until: null })
    } catch {
      // the database or the labels API is being restarted: the same frames are asked for again
    }
    await sleep(1_000, undefined, { signal }).catch(() => {})
  }
}

export async function trainWhenPrepared(demo: Demo, labels: readonly LabelLine[], signal: AbortSignal): Promise<void> {
  const offsets = labels.flatMap(({ mediaOffsetMs }) => (mediaOffsetMs === undefined ? [] : [mediaOffsetMs]))
  const last = Math.max(...offsets)
  while (!signal.aborted) {
    const prepared = await demo.pool
      .query<{ last: number | null }>('select max(media_offset_us) as last from features where camera_id = $1', [demo.cameraId])
      .catch(() => undefined)
    if ((prepared?.rows[0]?.last ?? -1) >= last * 1000) {
      await askOnce(demo, 'footage', { from: 0, until: last * 1000 + 1 }).catch(() => {})
      return
    }
    await sleep(1_000, undefined, { signal }).catch(() => {})
  }
}
