/** Which zones a camera has and which tasks ask about them; from PostgreSQL, refreshed while the process runs. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '@frameloop/kit/log'
import type { Pool, Sql } from '@frameloop/kit/postgres'
import type { Ms } from '@frameloop/kit/units'
import type { Preprocessing, ZoneShape } from './prepare.ts'

export interface TaskZone {
  readonly shape: ZoneShape
  readonly task: string
  readonly preprocessing: Preprocessing
}

export interface ZoneDirectory {
  /** Zones of a camera; the whole picture, asked about by nobody, when none are known. */
  of(cameraId: string): readonly TaskZone[]
  /** The first reading is done. */
  readonly loaded: boolean
}

interface Row {
  readonly camera_id: string
  readonly zone: string
  readonly task: string
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
  readonly picture_width: number
  readonly picture_height: number
  readonly preprocessing: Preprocessing
}

export async function selectZones(sql: Sql): Promise<Map<string, TaskZone[]>> {
  const { rows } = await sql.query<Row>(
    'select z.camera_id, z.zone, z.task, z.x, z.y, z.width, z.height, z.picture_width, z.picture_height, t.preprocessing from zones z join tasks t using (task) order by z.camera_id, z.zone, z.task',
  )
  const zones = new Map<string, TaskZone[]>()
  for (const row of rows) {
    const list = zones.get(row.camera_id) ?? []
    list.push({
      shape: { zone: row.zone, x: row.x, y: row.y, width: row.width, height: row.height, pictureWidth: row.picture_width, pictureHeight: row.picture_height },
      task: row.task,
      preprocessing: row.preprocessing,
    })
    zones.set(row.camera_id, list)
  }
  return zones
}

const wholePicture: readonly TaskZone[] = [
  { shape: { zone: 'full', x: 0, y: 0, width: 1, height: 1, pictureWidth: 1, pictureHeight: 1 }, task: '', preprocessing: { width: 64, height: 64 } },
]

export function openZoneDirectory(pool: Pool, log: Log, refresh: Ms): ZoneDirectory & { readonly run: (signal: AbortSignal) => Promise<void> } {
  let zones: Map<string, TaskZone[]> | undefined
  let failing = false
  return {
    of: (cameraId) => zones?.get(cameraId) ?? wholePicture,
    get loaded() {
      return zones !== undefined
    },
    async run(signal) {
      while (!signal.aborted) {
        try {
          zones = await selectZones(pool)
          failing = false
        } catch (thrown) {
          // the last known zones go on being used
          if (!failing) log.warn({ err: thrown }, 'zones could not be read')
          failing = true
        }
        await sleep(refresh, undefined, { signal }).catch(() => {})
      }
    },
  }
}
