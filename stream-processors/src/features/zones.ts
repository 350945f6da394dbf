/** Which zones a camera has, which tasks ask about them and how they are prepared; from PostgreSQL, refreshed while the process runs. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '@frameloop/kit/log'
import type { Pool, Sql } from '@frameloop/kit/postgres'
import type { Ms } from '@frameloop/kit/units'
import type { ObjectRef } from '@frameloop/schemas/events'
import { needsReference, type Preprocessing, preprocessingDigest, type ZoneShape } from './prepare.ts'

export interface TaskZone {
  readonly shape: ZoneShape
  readonly task: string
  readonly preprocessing: Preprocessing
  /** The camera's reference picture, where the preprocessing compares with one. */
  readonly reference?: ObjectRef
}

export interface ZoneDirectory {
  /** Zones of a camera; the whole picture, asked about by nobody, when none are known. */
  of(cameraId: string): readonly TaskZone[]
  /** Whether there is such a task; also before anything is asked about it. */
  hasTask(task: string): boolean
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
  readonly wanted: Preprocessing
  /** What those were trained on that serve, champion, challenger and shadow; it goes on being prepared as long as they do. */
  readonly serving: readonly { readonly preprocessing: Preprocessing; readonly references: Readonly<Record<string, string>> }[]
}

interface ReferenceRow {
  readonly camera_id: string
  readonly bucket: string
  readonly object_key: string
  readonly sha256: string
  readonly bytes: number
}

export async function selectZones(sql: Sql): Promise<Map<string, TaskZone[]>> {
  const { rows } = await sql.query<Row>(
    `select z.camera_id, z.zone, z.task, z.x, z.y, z.width, z.height, z.picture_width, z.picture_height, t.preprocessing as wanted,
       (select coalesce(json_agg(json_build_object('preprocessing', m.preprocessing_parameters, 'references', m.reference_pictures) order by r.alias), '[]')
        from roles_now r join model_versions m on m.task = r.task and m.version = r.version where r.task = z.task) as serving
     from zones z join tasks t using (task) order by z.camera_id, z.zone, z.task`,
  )
  const references = await selectReferences(sql)
  const zones = new Map<string, TaskZone[]>()
  for (const row of rows) {
    const shape: ZoneShape = { zone: row.zone, x: row.x, y: row.y, width: row.width, height: row.height, pictureWidth: row.picture_width, pictureHeight: row.picture_height }
    const own = references.filter(({ camera_id }) => camera_id === row.camera_id)
    const added = new Set<string>()
    const add = (preprocessing: Preprocessing, reference: ReferenceRow | undefined): void => {
      // before a camera has a reference picture nothing can be compared with it; where nothing else is asked, its whole picture is prepared
      const needed = needsReference(preprocessing) ? reference : undefined
      if (needsReference(preprocessing) && !needed) return
      const way = `${preprocessingDigest(preprocessing)} ${needed?.sha256 ?? ''}`
      if (added.has(way)) return
      added.add(way)
      const zone = { shape, task: row.task, preprocessing, ...(needed ? { reference: referenceOf(needed) } : {}) }
      zones.set(row.camera_id, [...(zones.get(row.camera_id) ?? []), zone])
    }
    add(row.wanted, own.at(-1))
    for (const { preprocessing, references: served } of row.serving)
      add(
        preprocessing,
        own.find(({ sha256 }) => sha256 === served[row.camera_id]),
      )
  }
  return zones
}

/** Of each camera, the oldest first. */
async function selectReferences(sql: Sql): Promise<readonly ReferenceRow[]> {
  return (await sql.query<ReferenceRow>('select camera_id, bucket, object_key, sha256, bytes from reference_pictures order by camera_id, version')).rows
}

/** What each camera usually looks like, as it was made last. */
export async function latestReferences(sql: Sql): Promise<Map<string, ObjectRef>> {
  return new Map((await selectReferences(sql)).map((row) => [row.camera_id, referenceOf(row)]))
}

const referenceOf = ({ bucket, object_key, sha256, bytes }: ReferenceRow): ObjectRef => ({ bucket, key: object_key, sha256, bytes, versionId: '', contentType: 'image/png' })

export const wholePicture: readonly TaskZone[] = [
  { shape: { zone: 'full', x: 0, y: 0, width: 1, height: 1, pictureWidth: 1, pictureHeight: 1 }, task: '', preprocessing: { width: 64, height: 64 } },
]

export function openZoneDirectory(pool: Pool, log: Log, refresh: Ms): ZoneDirectory & { readonly run: (signal: AbortSignal) => Promise<void> } {
  let zones: Map<string, TaskZone[]> | undefined
  let tasks = new Set<string>()
  let failing = false
  return {
    of: (cameraId) => zones?.get(cameraId) ?? wholePicture,
    hasTask: (task) => tasks.has(task),
    get loaded() {
      return zones !== undefined
    },
    async run(signal) {
      while (!signal.aborted) {
        try {
          const { rows } = await pool.query<{ task: string }>('select task from tasks')
          tasks = new Set(rows.map(({ task }) => task))
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
