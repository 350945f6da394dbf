/** `frameloop follow`: where a frame or media has been, from the capture to the model that answered; and where an answer comes from. */
import { Fault } from '@frameloop/kit/fault'
import type { Pool } from '@frameloop/kit/postgres'
import { isUuid } from '@frameloop/schemas/ids'
import { readAnswerTrace } from '@frameloop/schemas/trace'

type Row = Readonly<Record<string, unknown>>

export interface Way {
  readonly mediaId: string
  readonly frameId?: string
  readonly capture: Row
  readonly frame?: Row
  readonly hops: readonly Row[]
  readonly features: readonly Row[]
  readonly predictions: readonly Row[]
  readonly labels: readonly Row[]
  readonly models: readonly Row[]
  readonly deadLetters: readonly Row[]
}

/** Throws `FRAME_UNKNOWN`. */
export async function follow(pool: Pool, id: string): Promise<Way> {
  if (!isUuid(id)) throw new Fault('FRAME_UNKNOWN', `${id} is no id; ids look like 7c0b9d7e-3f0e-5f7a-9a53-0f6f1f3d2b1a`)
  const select = async (text: string, values: readonly unknown[]): Promise<Row[]> => (await pool.query<Record<string, unknown>>(text, [...values])).rows
  const [frame] = await select('select * from frames where frame_id = $1 or media_id = $1 order by frame_index limit 1', [id])
  const mediaId = (frame?.['media_id'] as string | undefined) ?? id
  const [capture] = await select('select * from media where media_id = $1', [mediaId])
  if (!capture) throw new Fault('FRAME_UNKNOWN', `The catalog knows no frame or media ${id}`, { id })
  const frameId = frame?.['frame_id'] as string | undefined
  const subjects = frameId ? [mediaId, frameId] : [mediaId]
  const [hops, features, predictions, labels, deadLetters] = await Promise.all([
    select('select topic, partition, record_offset, at, subject_id from hops where subject_id = any($1) order by at, topic', [subjects]),
    select('select preprocessing, bucket, object_key, object_sha256, zones, prepared_at from features where frame_id = $1', [frameId ?? null]),
    select(
      'select zone, task, answer, confidence, model_name, model_version, model_digest, preprocessing, answered_at, alias from predictions where frame_id = $1 order by answered_at, zone',
      [frameId ?? null],
    ),
    select(
      'select zone, task, label, source, recorded_at, superseded_at from labels where frame_id = $1 or (camera_id = $2 and media_offset_us = $3) or (camera_id = $2 and frame_at = $4) order by recorded_at',
      [frameId ?? null, capture['camera_id'], frame?.['media_offset_us'] ?? null, frame?.['frame_at'] ?? null],
    ),
    select('select topic, partition, record_offset, stage, reason, message, at from dead_letters where subject_id = any($1) order by at', [subjects]),
  ])
  const models = await select(
    'select task, version, model_name, run_id, digest, dataset_digest, created_at from model_versions where (task, version) in (select task, model_version from predictions where frame_id = $1)',
    [frameId ?? null],
  )
  return { mediaId, ...(frameId ? { frameId } : {}), capture, ...(frame ? { frame } : {}), hops, features, predictions, labels, models, deadLetters }
}

const time = (value: unknown): string => (value instanceof Date ? value.toISOString() : String(value ?? ''))
const mediaStates = ['', 'captured', 'validated', 'rejected', 'extracted'] as const

export function showWay(way: Way): string {
  const { capture } = way
  const lines = [
    `media       ${way.mediaId}`,
    ...(way.frameId ? [`frame       ${way.frameId}`] : []),
    `captured    ${time(capture['captured_at'])} by ${capture['agent_id']}, camera ${capture['camera_id']}, epoch ${capture['epoch']}, seq ${capture['seq']}, ${capture['lane']} lane`,
    ...(capture['media_offset_us'] === null
      ? []
      : [`offset      ${Number(capture['media_offset_us']) / 1000} ms of ${(capture['parameters'] as { sourceName?: string }).sourceName ?? 'its source'}`]),
    `state       ${mediaStates[Number(capture['status_rank'])] ?? 'unknown'}${capture['reason'] && Number(capture['status_rank']) === 3 ? ` (${capture['reason']})` : ''}`,
    `object      s3://${capture['bucket']}/${capture['object_key']}  ${capture['object_bytes']} bytes, sha256 ${capture['object_sha256']}`,
    `measured    ${capture['width']}x${capture['height']} ${capture['format']}, ${JSON.stringify((capture['parameters'] as { validate?: unknown }).validate ?? {})}`,
    `trace       ${capture['trace_id']}`,
    'topics',
    ...way.hops.map((hop) => `  ${time(hop['at'])}  ${String(hop['topic']).padEnd(34)} partition ${hop['partition']}  offset ${hop['record_offset']}`),
    ...way.features.flatMap((row) => [
      `features    preprocessing ${row['preprocessing']}, ${time(row['prepared_at'])}`,
      `  s3://${row['bucket']}/${row['object_key']}`,
      ...(row['zones'] as { zone: string; x: number; y: number; width: number; height: number; sharpness: number; brightness: number; phash: string }[]).map(
        (zone) => `  zone ${zone.zone}: ${zone.width}x${zone.height} at ${zone.x},${zone.y}; brightness ${zone.brightness}, sharpness ${zone.sharpness}, phash ${zone.phash}`,
      ),
    ]),
    ...(way.predictions.length > 0 ? ['answers'] : []),
    ...way.predictions.map(
      (row) =>
        `  ${time(row['answered_at'])}  ${row['task']} ${row['zone']}: ${row['answer']} (${Number(row['confidence']).toFixed(3)}) by ${row['model_name']} version ${row['model_version']}${row['alias'] ? `, ${row['alias']}` : ''}`,
    ),
    ...(way.labels.length > 0 ? ['labels'] : []),
    ...way.labels.map((row) => `  ${time(row['recorded_at'])}  ${row['task']} ${row['zone']}: ${row['label']} (${row['source']}${row['superseded_at'] ? ', superseded' : ''})`),
    ...(way.models.length > 0 ? ['models'] : []),
    ...way.models.map((row) => `  ${row['model_name']} version ${row['version']}: MLflow run ${row['run_id']}, dataset ${row['dataset_digest']}, digest ${row['digest']}`),
    ...(way.deadLetters.length > 0 ? ['dead letters'] : []),
    ...way.deadLetters.map(
      (row) =>
        `  ${time(row['at'])}  ${row['topic']} partition ${row['partition']} offset ${row['record_offset']}: ${row['stage']} refused it, ${row['reason']}: ${row['message']}`,
    ),
  ]
  return lines.join('\n')
}

/** Which model has answered about a picture that was sent along, and what it has learned from. */
export interface Origin {
  readonly traceId: string
  readonly answeredAt: Date
  /** With how it served then: its last promotion before, where there is one. */
  readonly model: Row
}

export const isTraceId = (id: string): boolean => /^[0-9a-f]{32}$/.test(id)

/** Throws `FRAME_UNKNOWN` when no model has such a digest. */
export async function followAnswer(pool: Pool, traceId: string): Promise<Origin> {
  const { answeredAt, digest } = readAnswerTrace(traceId)
  // two trainings of one dataset may end in the same weights: it was the version that had been made champion last
  const { rows } = await pool.query<Row>(
    `select v.task, v.version, v.model_name, v.run_id, v.digest, v.dataset_digest, v.preprocessing, last.alias, last.decided_by, last.reason, last.decided_at
     from model_versions v
     left join lateral (select id from promotions p where p.task = v.task and p.version = v.version and p.alias = 'champion' and p.decided_at <= $2 order by id desc limit 1) champion on true
     left join lateral (select * from promotions p where p.task = v.task and p.version = v.version and p.decided_at <= $2 order by id desc limit 1) last on true
     where left(v.digest, 8) = $1 order by champion.id desc nulls last, v.created_at limit 1`,
    [digest, new Date(answeredAt)],
  )
  const [model] = rows
  if (!model)
    throw new Fault(
      'FRAME_UNKNOWN',
      `${traceId} is no trace id of an answer to a picture that was sent along: no model has a digest that begins with ${digest}. A live answer is followed by its frameId`,
    )
  return { traceId, answeredAt: new Date(answeredAt), model }
}

export function showOrigin({ traceId, answeredAt, model }: Origin): string {
  return [
    `answer      ${traceId}`,
    `given       ${time(answeredAt)}, about what was sent along, which is not kept`,
    `model       ${model['model_name']} version ${model['version']}: MLflow run ${model['run_id']}, dataset ${model['dataset_digest']}, digest ${model['digest']}`,
    `prepared    preprocessing ${model['preprocessing']}`,
    ...(model['alias'] ? [`served as   ${model['alias']} since ${time(model['decided_at'])} by ${model['decided_by']}: ${model['reason']}`] : []),
  ].join('\n')
}
