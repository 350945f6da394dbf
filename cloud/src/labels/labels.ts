/** The truth about zones: stored once, never overwritten, only superseded; each new label is told on labels.recorded. */
import { randomUUID } from 'node:crypto'
import { inTransaction, type Pool, type Sql } from '@frameloop/kit/postgres'
import { isUuid } from '@frameloop/schemas/ids'
import { topics } from '@frameloop/schemas/topics'
import type { ZoneShape } from '@frameloop/stream-processors/features/prepare'
import { enqueue } from '../outbox.ts'

export interface NewLabel {
  readonly cameraId: string
  readonly zone: string
  readonly task: string
  readonly label: string
  /** Exactly one of the three says what is labelled. */
  readonly frameId?: string
  readonly mediaOffsetMs?: number
  readonly frameAt?: string
}

export interface Rejected {
  /** Position in the request. */
  readonly index: number
  readonly message: string
}

export interface Stored {
  readonly stored: number
  readonly unchanged: number
  readonly superseded: number
  readonly rejected: readonly Rejected[]
}

/** SQL: the truth about the prediction `p` now, one row or none: of a label for the frame and one for its moment the later one. For `join lateral`. */
export const labelOfPrediction = `(select l.label from labels l where l.camera_id = p.camera_id and l.zone = p.zone and l.task = p.task and l.superseded_at is null
  and (l.frame_id = p.frame_id or l.media_offset_us = p.media_offset_us or l.frame_at = p.frame_at) order by l.recorded_at desc limit 1)`

/** SQL: the prediction `p` is about no moment of footage that was there before `cutAt`: what plays in a loop shows again what the model has learned from. */
export const isUnseen = (cutAt: string): string =>
  `(p.media_offset_us is null or not exists (select 1 from features seen where seen.camera_id = p.camera_id and seen.media_offset_us = p.media_offset_us and seen.frame_at <= ${cutAt}))`

/** A moment, whoever reads it: what is no ISO 8601 with its zone, JavaScript and PostgreSQL read in ways of their own. */
export const isTime = (text: string): boolean => /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$/.test(text) && !Number.isNaN(Date.parse(text))

/** What labels can be about. */
export interface Known {
  /** `CAMERA ZONE TASK` */
  readonly zones: ReadonlySet<string>
  /** `FRAME CAMERA` */
  readonly frames: ReadonlySet<string>
  /** Of each task; none: whatever is labelled. */
  readonly classes: ReadonlyMap<string, readonly string[]>
}

/** Why a label cannot be stored, or undefined: pure. */
export function refuseLabel(label: NewLabel, { zones, frames, classes }: Known): string | undefined {
  const named = [label.frameId, label.mediaOffsetMs, label.frameAt].filter((value) => value !== undefined)
  if (named.length !== 1) return 'a label names exactly one of frame_id, media_offset_ms and frame_at'
  if (label.label.trim() === '') return 'the label is empty'
  const own = classes.get(label.task) ?? []
  if (own.length > 0 && !own.includes(label.label)) return `the classes of task ${label.task} are ${own.join(', ')}, ${label.label} is none of them`
  if (!zones.has(`${label.cameraId} ${label.zone} ${label.task}`)) return `task ${label.task} has no zone ${label.zone} on camera ${label.cameraId}`
  if (label.frameId !== undefined && !frames.has(`${label.frameId} ${label.cameraId}`)) return `no frame ${label.frameId} of camera ${label.cameraId} is known`
  if (label.frameAt !== undefined && !isTime(label.frameAt)) return `${label.frameAt} is no time; times look like 2026-11-24T10:00:00.000Z`
  return undefined
}

async function knownZones(sql: Sql): Promise<Set<string>> {
  const { rows } = await sql.query<{ key: string }>("select camera_id || ' ' || zone || ' ' || task as key from zones")
  return new Set(rows.map(({ key }) => key))
}

async function knownClasses(sql: Sql): Promise<Map<string, readonly string[]>> {
  const { rows } = await sql.query<{ task: string; classes: string[] }>('select task, classes from tasks')
  return new Map(rows.map(({ task, classes }) => [task, classes]))
}

async function knownFrames(sql: Sql, ids: readonly string[]): Promise<Set<string>> {
  if (ids.length === 0) return new Set()
  const { rows } = await sql.query<{ frame_id: string; camera_id: string }>('select frame_id, camera_id from frames where frame_id = any($1::uuid[])', [ids.filter(isUuid)])
  return new Set(rows.map(({ frame_id, camera_id }) => `${frame_id} ${camera_id}`))
}

/** What somebody said last about the same thing: a question for each way of naming a moment, which has an index of its own. */
function selectBefore(frameId: string | null, offset: number | null): string {
  const moment = frameId !== null ? 'frame_id = $4::uuid' : offset !== null ? 'media_offset_us = $4::bigint' : 'frame_at = $4::timestamptz'
  return `select label_id, label, recorded_at from labels where camera_id = $1 and zone = $2 and task = $3 and ${moment} and superseded_at is null`
}

/** Stores what can be stored, tells what cannot and why. The same label again changes nothing, and an older word takes no newer one's place. */
export async function storeLabels(pool: Pool, labels: readonly NewLabel[], source: string, recordedAt: Date): Promise<Stored> {
  return inTransaction(pool, async (client) => {
    // one writer of labels at a time: two importers must not both supersede the same row
    await client.query("select pg_advisory_xact_lock(hashtext('frameloop.labels'))")
    const frameIds = labels.flatMap(({ frameId }) => (frameId ? [frameId] : []))
    const known = { zones: await knownZones(client), frames: await knownFrames(client, frameIds), classes: await knownClasses(client) }
    const rejected: Rejected[] = []
    const accepted = labels.flatMap((label, index) => {
      const message = refuseLabel(label, known)
      if (message === undefined) return [label]
      rejected.push({ index, message })
      return []
    })
    let stored = 0
    let superseded = 0
    for (const label of accepted) {
      const offset = label.mediaOffsetMs === undefined ? null : Math.round(label.mediaOffsetMs * 1000)
      const values = [label.cameraId, label.zone, label.task, label.frameId ?? null, offset, label.frameAt === undefined ? null : new Date(label.frameAt)]
      const moment = label.frameId ?? offset ?? values.at(-1)
      const asked = [label.cameraId, label.zone, label.task, moment]
      const { rows } = await client.query<{ label_id: string; label: string; recorded_at: Date }>(selectBefore(label.frameId ?? null, offset), asked)
      const before = rows[0]
      if (before?.label === label.label || (before && before.recorded_at > recordedAt)) continue
      if (before) {
        await client.query('update labels set superseded_at = $2 where label_id = $1', [before.label_id, recordedAt])
        superseded += 1
      }
      const labelId = randomUUID()
      await client.query(
        'insert into labels (label_id, camera_id, zone, task, frame_id, media_offset_us, frame_at, label, source, recorded_at) values ($7, $1, $2, $3, $4, $5, $6, $8, $9, $10)',
        [...values, labelId, label.label, source, recordedAt],
      )
      await enqueue(client, topics.labelsRecorded, label.cameraId, labelId, {
        labelId,
        cameraId: label.cameraId,
        zone: label.zone,
        task: label.task,
        label: label.label,
        frameId: label.frameId ?? null,
        mediaOffsetUs: offset,
        frameAt: label.frameAt === undefined ? null : Date.parse(label.frameAt),
        source,
        recordedAt: recordedAt.getTime(),
      })
      stored += 1
    }
    return { stored, superseded, unchanged: accepted.length - stored, rejected }
  })
}

/** Sets the zones of a camera for a task; the task is made when it is new. Zones not named stay as they are. */
export async function putZones(pool: Pool, cameraId: string, task: string, zones: readonly ZoneShape[]): Promise<void> {
  await inTransaction(pool, async (client) => {
    await client.query('insert into tasks (task) values ($1) on conflict do nothing', [task])
    for (const zone of zones) {
      await client.query(
        `insert into zones (camera_id, zone, task, x, y, width, height, picture_width, picture_height) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         on conflict (camera_id, zone, task) do update set x = excluded.x, y = excluded.y, width = excluded.width, height = excluded.height, picture_width = excluded.picture_width, picture_height = excluded.picture_height`,
        [cameraId, zone.zone, task, zone.x, zone.y, zone.width, zone.height, zone.pictureWidth, zone.pictureHeight],
      )
    }
  })
}
