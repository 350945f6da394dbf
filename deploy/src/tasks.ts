/** `tasks list | set` and `references build | list`: what is asked of zones, and how their pixels are prepared for it. */

import { listOf } from '@frameloop/kit/config'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { inTransaction, type Pool } from '@frameloop/kit/postgres'
import { isName } from '@frameloop/schemas/ids'
import { bucketName, referenceKey } from '@frameloop/schemas/object-keys'
import { colours, type Filter, filters, kernels, needsReference, type Preprocessing, preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { decodePicture, encodePng } from '@frameloop/stream-processors/picture/decode-picture'
import { medianPicture } from '@frameloop/stream-processors/picture/median'
import { timeOf } from './times.ts'

export interface PreprocessingFlags {
  readonly size?: string
  readonly kernel?: string
  readonly colour?: string
  readonly filters?: string
}

/** Flags over what is there; all problems at once. Throws `REQUEST_INVALID`. */
export function preprocessingOf(flags: PreprocessingFlags, before: Preprocessing = { width: 64, height: 64 }): Preprocessing {
  const problems: string[] = []
  const sides = flags.size === undefined ? [before.width, before.height] : (/^(\d+)x(\d+)$/.exec(flags.size)?.slice(1).map(Number) ?? [])
  const [width = 0, height = 0] = sides
  if (width < 8 || height < 8 || width > 1024 || height > 1024) problems.push(`--size ${flags.size}: WIDTHxHEIGHT from 8x8 to 1024x1024, for example 96x96`)
  const kernel = oneOf('--kernel', flags.kernel ?? before.kernel ?? 'area', kernels, problems)
  const colour = oneOf('--colour', flags.colour ?? before.colour ?? 'rgb', colours, problems)
  const asked = flags.filters === undefined ? (before.filters ?? []) : flags.filters.split(',').filter((name) => name !== '' && name !== 'none')
  const chosen = asked.map((name) => oneOf('--filters', name, filters, problems))
  if (problems.length > 0) throw new Fault('REQUEST_INVALID', problems.join('\n'))
  return { width, height, ...(kernel === 'area' ? {} : { kernel }), ...(colour === 'rgb' ? {} : { colour }), ...(chosen.length > 0 ? { filters: chosen } : {}) }
}

function oneOf<Name extends string>(flag: string, name: string, names: readonly Name[], problems: string[]): Name {
  const found = names.find((known) => known === name)
  if (found === undefined) problems.push(`${flag} ${name}: one of ${names.join(', ')}`)
  return found ?? (names[0] as Name)
}

export function showPreprocessing({ width, height, kernel = 'area', colour = 'rgb', filters: asked = [] }: Preprocessing): string {
  return `${width}x${height} ${colour}, ${kernel}${asked.length > 0 ? `, ${asked.join(' → ')}` : ''}`
}

interface TaskRow {
  readonly task: string
  readonly classes: readonly string[]
  readonly preprocessing: Preprocessing
  readonly zones: number
  readonly cameras: readonly string[] | null
}

export async function listTasks(pool: Pool): Promise<(TaskRow & { readonly digest: string })[]> {
  const { rows } = await pool.query<TaskRow>(
    'select t.task, t.classes, t.preprocessing, count(z.zone)::int as zones, array_agg(distinct z.camera_id) filter (where z.camera_id is not null) as cameras from tasks t left join zones z using (task) group by t.task order by t.task',
  )
  return rows.map((row) => ({ ...row, digest: preprocessingDigest(row.preprocessing) }))
}

export function showTasks(tasks: readonly (TaskRow & { readonly digest: string })[]): string {
  if (tasks.length === 0) return 'There is no task yet: one comes with its zones (`frameloop up --zones FILE --task NAME`) or with `frameloop tasks set NAME`.'
  return tasks
    .map(
      ({ task, classes, preprocessing, digest, zones, cameras }) =>
        `${task.padEnd(16)} ${showPreprocessing(preprocessing)} (${digest})  ${zones} zones of ${cameras?.join(', ') ?? 'no camera'}  classes ${classes.length > 0 ? classes.join(', ') : 'as labelled'}`,
    )
    .join('\n')
}

export interface SetTask {
  readonly preprocessing: Preprocessing
  readonly isNew: boolean
  /** Another way of preparing than before: features from now on, a new model needed. */
  readonly isChanged: boolean
  /** Cameras that wait for a reference picture. */
  readonly without: readonly string[]
}

export async function setTask(pool: Pool, task: string, flags: PreprocessingFlags & { readonly classes?: string }): Promise<SetTask> {
  if (!isName(task)) throw new Fault('REQUEST_INVALID', `${task} is no name: letters, digits, dots, dashes and underscores only`)
  return inTransaction(pool, async (client) => {
    const { rows } = await client.query<{ preprocessing: Preprocessing; classes: string[] }>('select preprocessing, classes from tasks where task = $1 for update', [task])
    const preprocessing = preprocessingOf(flags, rows[0]?.preprocessing)
    const classes = flags.classes === undefined ? (rows[0]?.classes ?? []) : listOf(flags.classes)
    await client.query(
      'insert into tasks (task, classes, preprocessing) values ($1, $2, $3) on conflict (task) do update set classes = excluded.classes, preprocessing = excluded.preprocessing',
      [task, classes, preprocessing],
    )
    const cameras = await client.query<{ camera_id: string }>(
      'select distinct camera_id from zones where task = $1 and not exists (select 1 from reference_pictures r where r.camera_id = zones.camera_id) order by camera_id',
      [task],
    )
    return {
      preprocessing,
      isNew: rows.length === 0,
      isChanged: rows[0] !== undefined && preprocessingDigest(rows[0].preprocessing) !== preprocessingDigest(preprocessing),
      without: needsReference(preprocessing) ? cameras.rows.map(({ camera_id }) => camera_id) : [],
    }
  })
}

export interface ReferenceFlags {
  readonly from?: string
  readonly to?: string
  readonly fromOffsetMs?: number
  readonly untilOffsetMs?: number
  readonly frames: number
}

export interface Reference {
  readonly version: number
  readonly sha256: string
  readonly frames: number
  readonly width: number
  readonly height: number
}

/** The median of frames spread evenly over the range, as an object that never changes. Build it from the range that is trained on. */
export async function buildReference(
  cameraId: string,
  flags: ReferenceFlags,
  tools: { readonly pool: Pool; readonly store: ObjectStore; readonly bucketPrefix: string; readonly say: (text: string) => void },
): Promise<Reference> {
  const { pool, store } = tools
  const offsets = [flags.fromOffsetMs, flags.untilOffsetMs].map((ms) => (ms === undefined ? null : Math.round(ms * 1000)))
  const range = [timeOf(flags.from, '--from'), timeOf(flags.to, '--to'), ...offsets]
  const { rows } = await pool.query<{ frame_id: string; bucket: string; object_key: string }>(
    `select frame_id, bucket, object_key from (
       select frame_id, bucket, object_key, frame_at, row_number() over (order by frame_at, frame_id) - 1 as at, count(*) over () as total
       from frames where camera_id = $1 and object_key <> '' and ($2::timestamptz is null or frame_at >= $2) and ($3::timestamptz is null or frame_at < $3)
         and ($4::bigint is null or media_offset_us >= $4) and ($5::bigint is null or media_offset_us < $5)
     ) f where at * $6::int / total <> (at - 1) * $6::int / total or at = 0 order by frame_at limit $6`,
    [cameraId, ...range, flags.frames],
  )
  if (rows.length === 0) throw new Fault('FRAME_UNKNOWN', `No frame of camera ${cameraId} lies in the range asked for`)
  const crops: Uint8Array[] = []
  const used: string[] = []
  let size = { width: 0, height: 0 }
  for (const { frame_id, bucket, object_key } of rows) {
    const picture = await decodePicture(await store.get(bucket, object_key))
    if (size.width === 0) size = { width: picture.width, height: picture.height }
    // the camera was set to another size meanwhile
    if (picture.width !== size.width || picture.height !== size.height) continue
    crops.push(picture.rgb)
    used.push(frame_id)
    if (crops.length % 10 === 0) tools.say(`${crops.length} of ${rows.length} frames read`)
  }
  const body = await encodePng({ rgb: medianPicture(crops), ...size })
  const sha256 = sha256Hex(body)
  const bucket = bucketName(tools.bucketPrefix, 'datasets')
  const key = referenceKey(cameraId, sha256)
  await store.putOnce({ bucket, key, body, sha256, contentType: 'image/png' })
  const made = await pool.query<{ version: number }>(
    `insert into reference_pictures (camera_id, version, bucket, object_key, sha256, bytes, width, height, frames)
     select $1, coalesce(max(version), 0) + 1, $2, $3, $4, $5, $6, $7, $8 from reference_pictures where camera_id = $1 returning version`,
    [cameraId, bucket, key, sha256, body.length, size.width, size.height, used],
  )
  return { version: made.rows[0]?.version ?? 0, sha256, frames: used.length, ...size }
}

/** The `--preprocessing` of a command: the same flags in one text, for example `96x96,gray,equalise`. Throws `REQUEST_INVALID`. */
export function parsePreprocessing(text: string): Preprocessing {
  const [size = '', ...words] = text.split(',')
  const isFilter = (word: string): word is Filter => filters.some((name) => name === word)
  const kernel = words.find((word) => kernels.some((name) => name === word))
  const colour = words.find((word) => colours.some((name) => name === word))
  const others = words.filter((word) => word !== kernel && word !== colour)
  const wrong = others.filter((word) => !isFilter(word))
  if (wrong.length > 0)
    throw new Fault('REQUEST_INVALID', `${wrong.join(', ')}: a kernel (${kernels.join(', ')}), a colour (${colours.join(', ')}) or filters (${filters.join(', ')})`)
  return preprocessingOf({ size, filters: others.join(','), ...(kernel ? { kernel } : {}), ...(colour ? { colour } : {}) })
}
