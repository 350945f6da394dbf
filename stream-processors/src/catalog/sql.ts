/** The catalog's statements. All of them take many rows at once (`unnest` over JSON) and may be repeated without effect. */
import type { Sql } from '@frameloop/kit/postgres'

type Rows = readonly Readonly<Record<string, unknown>>[]

/** One statement over a JSON array of rows: `columns` are `name type`. */
function overRows(columns: string): string {
  return `jsonb_to_recordset($1::jsonb) as r(${columns})`
}

/** NUL characters, which strangers may send in any text, are left out: PostgreSQL cannot hold them. */
export function jsonOf(rows: Rows): string {
  return JSON.stringify(rows).replace(/(?<!\\)((?:\\\\)*)\\u0000/g, '$1')
}

const mediaColumns = `media_id uuid, site_id text, camera_id text, agent_id text, epoch text, seq bigint, source text, kind text, lane text, captured_at timestamptz, media_offset_us bigint,
  status_rank smallint, reason text, bucket text, object_key text, object_sha256 text, object_bytes bigint, format text, width int, height int, frame_count int, parameters jsonb, trace_id text`

/** A row that another topic made first knows nothing of the object, and what was validated (it has a format) outweighs what was announced. */
const isBetter = "media.object_key = '' or (media.format = '' and excluded.format <> '')"
const better = (...columns: readonly string[]): string =>
  columns.map((column) => `${column} = case when ${isBetter} then excluded.${column} else media.${column} end`).join(',\n       ')

/** Each topic fills its own columns; the status only rises. */
export async function upsertMedia(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into media (media_id, site_id, camera_id, agent_id, epoch, seq, source, kind, lane, captured_at, media_offset_us, status_rank, reason, bucket, object_key, object_sha256, object_bytes, format, width, height, frame_count, parameters, trace_id)
     select media_id, site_id, camera_id, agent_id, epoch, seq, source, kind, lane, captured_at, media_offset_us, status_rank, reason, bucket, object_key, object_sha256, object_bytes, format, width, height, frame_count, parameters, trace_id from ${overRows(mediaColumns)}
     order by media_id
     on conflict (media_id, captured_at) do update set
       status_rank = greatest(media.status_rank, excluded.status_rank),
       reason = case when excluded.reason <> '' then excluded.reason else media.reason end,
       agent_id = case when excluded.agent_id <> '' then excluded.agent_id else media.agent_id end,
       kind = excluded.kind,
       ${better('source', 'lane', 'media_offset_us', 'bucket', 'object_key', 'object_sha256', 'object_bytes', 'trace_id')},
       format = case when excluded.format <> '' then excluded.format else media.format end,
       width = greatest(media.width, excluded.width),
       height = greatest(media.height, excluded.height),
       frame_count = coalesce(excluded.frame_count, media.frame_count),
       parameters = media.parameters || excluded.parameters`,
    [jsonOf(rows)],
  )
}

/** What was rejected and gets through after all (it was sent again) may be settled in the ledger: its epoch is counted anew. */
async function countAnew(sql: Sql, table: 'media' | 'frames', rows: Rows): Promise<void> {
  const [id, at, rank] = table === 'media' ? ['media_id', 'captured_at', 3] : ['frame_id', 'frame_at', 2]
  await sql.query(
    `delete from ledger l using (select distinct t.camera_id, t.epoch from ${table} t join ${overRows(`${id} uuid, ${at} timestamptz`)} using (${id}, ${at}) where t.status_rank = ${rank}) s
     where (l.camera_id, l.epoch) = (s.camera_id, s.epoch)`,
    [jsonOf(rows)],
  )
}

/** What extract says about its media: it only adds, and never invents a row's identity. */
export async function updateMediaExtracted(sql: Sql, rows: Rows): Promise<void> {
  await countAnew(sql, 'media', rows)
  await sql.query(
    `insert into media (media_id, site_id, camera_id, epoch, seq, captured_at, status_rank, frame_count)
     select distinct on (media_id) media_id, site_id, camera_id, epoch, seq, captured_at, 4, frame_count from ${overRows('media_id uuid, site_id text, camera_id text, epoch text, seq bigint, captured_at timestamptz, frame_count int')}
     order by media_id
     on conflict (media_id, captured_at) do update set status_rank = greatest(media.status_rank, 4::smallint), frame_count = excluded.frame_count`,
    [jsonOf(rows)],
  )
}

export async function upsertFrames(sql: Sql, rows: Rows): Promise<void> {
  const prepared = rows.filter((row) => row['status_rank'] === 3)
  if (prepared.length > 0) await countAnew(sql, 'frames', prepared)
  await sql.query(
    `insert into frames (frame_id, media_id, camera_id, epoch, seq, frame_at, media_offset_us, frame_index, status_rank, reason, bucket, object_key, object_sha256, width, height, parameters)
     select frame_id, media_id, camera_id, epoch, seq, frame_at, media_offset_us, frame_index, status_rank, reason, bucket, object_key, object_sha256, width, height, parameters
     from ${overRows('frame_id uuid, media_id uuid, camera_id text, epoch text, seq bigint, frame_at timestamptz, media_offset_us bigint, frame_index int, status_rank smallint, reason text, bucket text, object_key text, object_sha256 text, width int, height int, parameters jsonb')}
     order by frame_id
     on conflict (frame_id, frame_at) do update set
       status_rank = greatest(frames.status_rank, excluded.status_rank),
       reason = case when excluded.reason <> '' then excluded.reason else frames.reason end,
       frame_index = greatest(frames.frame_index, excluded.frame_index),
       bucket = case when excluded.bucket <> '' then excluded.bucket else frames.bucket end,
       object_key = case when excluded.object_key <> '' then excluded.object_key else frames.object_key end,
       object_sha256 = case when excluded.object_sha256 <> '' then excluded.object_sha256 else frames.object_sha256 end,
       width = greatest(frames.width, excluded.width),
       height = greatest(frames.height, excluded.height),
       parameters = frames.parameters || excluded.parameters`,
    [jsonOf(rows)],
  )
}

export async function upsertFeatures(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into features (frame_id, preprocessing, reference, camera_id, frame_at, media_offset_us, bucket, object_key, object_sha256, picture_sha256, zones, parameters, topic, partition, record_offset, prepared_at)
     select frame_id, preprocessing, reference, camera_id, frame_at, media_offset_us, bucket, object_key, object_sha256, picture_sha256, zones, parameters, topic, partition, record_offset, prepared_at
     from ${overRows('frame_id uuid, preprocessing text, reference text, camera_id text, frame_at timestamptz, media_offset_us bigint, bucket text, object_key text, object_sha256 text, picture_sha256 text, zones jsonb, parameters jsonb, topic text, partition int, record_offset bigint, prepared_at timestamptz')}
     on conflict (frame_id, preprocessing, reference, frame_at) do nothing`,
    [jsonOf(rows)],
  )
}

export async function upsertPredictions(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into predictions (frame_id, zone, task, model_version, camera_id, frame_at, media_offset_us, answer, confidence, scores, model_name, model_digest, preprocessing, captured_at, answered_at, predict_ms, alias)
     select frame_id, zone, task, model_version, camera_id, frame_at, media_offset_us, answer, confidence, scores, model_name, model_digest, preprocessing, captured_at, answered_at, predict_ms, alias
     from ${overRows('frame_id uuid, zone text, task text, model_version text, camera_id text, frame_at timestamptz, media_offset_us bigint, answer text, confidence double precision, scores jsonb, model_name text, model_digest text, preprocessing text, captured_at timestamptz, answered_at timestamptz, predict_ms double precision, alias text')}
     -- answers from before roles were kept have none: a rebuild gives them theirs
     on conflict (frame_id, zone, task, model_version, frame_at) do update set alias = excluded.alias where predictions.alias = '' and excluded.alias <> ''`,
    [jsonOf(rows)],
  )
}

export async function insertHops(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into hops (topic, partition, record_offset, subject_id, at)
     select topic, partition, record_offset, subject_id, at from ${overRows('topic text, partition int, record_offset bigint, subject_id uuid, at timestamptz')}
     on conflict do nothing`,
    [jsonOf(rows)],
  )
}

export async function insertDeadLetters(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into dead_letters (topic, partition, record_offset, stage, reason, message, origin_topic, origin_partition, origin_offset, camera_id, subject_id, at)
     select topic, partition, record_offset, stage, reason, message, origin_topic, origin_partition, origin_offset, camera_id, subject_id, at
     from ${overRows('topic text, partition int, record_offset bigint, stage text, reason text, message text, origin_topic text, origin_partition int, origin_offset bigint, camera_id text, subject_id uuid, at timestamptz')}
     on conflict do nothing`,
    [jsonOf(rows)],
  )
}

export async function insertLosses(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into losses (camera_id, epoch, seq_from, seq_to, agent_id, reason, lost_at)
     select camera_id, epoch, seq_from, seq_to, agent_id, reason, lost_at from ${overRows('camera_id text, epoch text, seq_from bigint, seq_to bigint, agent_id text, reason text, lost_at timestamptz')}
     on conflict do nothing`,
    [jsonOf(rows)],
  )
  // what was settled as something else is erased now: its epoch is counted anew
  const erased = rows.filter(({ reason }) => reason === 'erased')
  if (erased.length > 0)
    await sql.query(
      `delete from ledger using ${overRows('camera_id text, epoch text, seq_from bigint')} where ledger.camera_id = r.camera_id and ledger.epoch = r.epoch and ledger.settled_seq >= r.seq_from`,
      [jsonOf(erased)],
    )
}

const isLater = 'excluded.reported_at >= captures.reported_at'

export async function upsertCaptures(sql: Sql, rows: Rows): Promise<void> {
  await sql.query(
    `insert into captures (camera_id, epoch, agent_id, highest_seq, forgotten_seq, state, message, source_kind, frames_per_second, last_frame_at, reported_at)
     select camera_id, epoch, agent_id, highest_seq, forgotten_seq, state, message, source_kind, frames_per_second, last_frame_at, reported_at
     from ${overRows('camera_id text, epoch text, agent_id text, highest_seq bigint, forgotten_seq bigint, state text, message text, source_kind text, frames_per_second double precision, last_frame_at timestamptz, reported_at timestamptz')}
     on conflict (camera_id, epoch) do update set
       highest_seq = greatest(captures.highest_seq, excluded.highest_seq),
       forgotten_seq = greatest(captures.forgotten_seq, excluded.forgotten_seq),
       state = case when ${isLater} then excluded.state else captures.state end,
       message = case when ${isLater} then excluded.message else captures.message end,
       frames_per_second = case when ${isLater} then excluded.frames_per_second else captures.frames_per_second end,
       source_kind = case when excluded.source_kind <> '' then excluded.source_kind else captures.source_kind end,
       last_frame_at = case when ${isLater} then coalesce(excluded.last_frame_at, captures.last_frame_at) else captures.last_frame_at end,
       reported_at = greatest(captures.reported_at, excluded.reported_at)`,
    [jsonOf(rows)],
  )
}

export interface OffsetMove {
  readonly topic: string
  readonly partition: number
  /** Where the catalog stood. */
  readonly from: number
  /** Where it stands after this batch. */
  readonly to: number
}

/** Makes the partitions of these days (UTC), where they are missing. */
export async function ensureDays(sql: Sql, days: readonly string[]): Promise<void> {
  await sql.query('select ensure_catalog_days($1::date[])', [days])
}

/** Moves the offsets; false when somebody else moved one of them, and then nothing of the batch may stay. */
export async function moveOffsets(sql: Sql, moves: readonly OffsetMove[]): Promise<boolean> {
  const { rowCount } = await sql.query(
    `insert into catalog_offsets as o (topic, partition, next_offset)
     select topic, partition, "to" from jsonb_to_recordset($1::jsonb) as r(topic text, partition int, "from" bigint, "to" bigint)
     order by topic, partition
     on conflict (topic, partition) do update set next_offset = excluded.next_offset
     where o.next_offset = (select "from" from jsonb_to_recordset($1::jsonb) as m(topic text, partition int, "from" bigint, "to" bigint) where m.topic = o.topic and m.partition = o.partition)`,
    [JSON.stringify(moves)],
  )
  return rowCount === moves.length
}

export async function selectOffsets(sql: Sql): Promise<Map<string, number>> {
  const { rows } = await sql.query<{ topic: string; partition: number; next_offset: number }>('select topic, partition, next_offset from catalog_offsets')
  return new Map(rows.map((row) => [`${row.topic} ${row.partition}`, row.next_offset]))
}
