/** Records → rows: pure, one function per topic, so that reading a topic again gives equal rows. */
import { Fault } from '@frameloop/kit/fault'
import type { EpochMs } from '@frameloop/kit/units'
import type { Codec } from '@frameloop/schemas/codec'
import { isUuid } from '@frameloop/schemas/ids'
import { isDeadLetterTopic, topics } from '@frameloop/schemas/topics'
import { traceIdOf } from '@frameloop/schemas/trace'
import type { BusRecord } from '../chain/stage.ts'

type Row = Readonly<Record<string, unknown>>

/** The rows that one batch adds, by table. */
export interface Rows {
  readonly media: Row[]
  readonly mediaExtracted: Row[]
  readonly frames: Row[]
  readonly features: Row[]
  readonly predictions: Row[]
  readonly hops: Row[]
  readonly deadLetters: Row[]
  readonly losses: Row[]
  readonly captures: Row[]
}

export function noRows(): Rows {
  return { media: [], mediaExtracted: [], frames: [], features: [], predictions: [], hops: [], deadLetters: [], losses: [], captures: [] }
}

const iso = (at: EpochMs): string => new Date(at).toISOString()

/** Status ranks; a later stage's rank is higher, so the order of reading topics does not matter. */
export const mediaRanks = { captured: 1, validated: 2, rejected: 3, extracted: 4 } as const
export const frameRanks = { extracted: 1, rejected: 2, prepared: 3 } as const

/** Days (UTC) that rows fall on, of the tables that are partitioned by day, as far as a clock can be right about them. */
export function daysOf(rows: Rows, now: EpochMs): string[] {
  const [oldest, newest] = [iso(now - 400 * 86_400_000).slice(0, 10), iso(now + 2 * 86_400_000).slice(0, 10)]
  const days = [
    ...[...rows.media, ...rows.mediaExtracted].map((row) => row['captured_at']),
    ...[...rows.frames, ...rows.features, ...rows.predictions].map((row) => row['frame_at']),
    ...rows.hops.map((row) => row['at']),
  ].map((at) => String(at).slice(0, 10))
  return [...new Set(days)].filter((day) => day >= oldest && day <= newest)
}

/** Adds a record's rows. Throws what the codec throws for a value that cannot be read. */
export async function addRows(rows: Rows, record: BusRecord, codec: Codec): Promise<void> {
  const hop = (subject: string): void => {
    rows.hops.push({ topic: record.topic, partition: record.partition, record_offset: record.offset, subject_id: subject, at: iso(record.timestamp) })
  }
  // a copy of a replay has no effect, wherever it turns up
  if (record.headers['fl-effects'] === 'none' && !isDeadLetterTopic(record.topic)) return
  if (isDeadLetterTopic(record.topic)) {
    await addDeadLetter(rows, record, codec, hop)
    return
  }
  switch (record.topic) {
    case topics.mediaCaptured.name:
    case topics.mediaBackfill.name: {
      const event = await codec.decode('MediaCaptured', record.value)
      // validate refuses it: its dead letter is what stands for it
      if (!isUuid(event.mediaId)) throw new Fault('RECORD_MALFORMED', `${JSON.stringify(event.mediaId.slice(0, 80))} is no id of a medium`)
      hop(event.mediaId)
      rows.media.push({
        ...mediaRow(event),
        status_rank: mediaRanks.captured,
        reason: '',
        format: '',
        parameters: { sourceName: event.sourceName, contentType: event.object.contentType, versionId: event.object.versionId },
        trace_id: traceIdOf(record.headers['traceparent']),
      })
      return
    }
    case topics.mediaValidated.name:
    case topics.mediaValidatedBackfill.name: {
      const event = await codec.decode('MediaValidated', record.value)
      hop(event.mediaId)
      rows.media.push({
        ...mediaRow(event),
        status_rank: mediaRanks.validated,
        reason: '',
        format: event.format,
        parameters: {
          validate: {
            version: event.stageVersion,
            brightness: event.brightness,
            sharpness: event.sharpness,
            durationUs: event.durationUs,
            phash: event.phash,
            marks: event.marks,
            arrivedAt: event.arrivedAt,
          },
        },
        trace_id: traceIdOf(record.headers['traceparent']),
      })
      return
    }
    case topics.framesExtracted.name:
    case topics.framesExtractedBackfill.name: {
      const event = await codec.decode('FrameExtracted', record.value)
      hop(event.frameId)
      rows.frames.push({
        ...frameRow(event),
        frame_index: event.index,
        status_rank: frameRanks.extracted,
        reason: '',
        bucket: event.object.bucket,
        object_key: event.object.key,
        object_sha256: event.object.sha256,
        width: event.width,
        height: event.height,
        parameters: { extract: { version: event.stageVersion, ptsUs: event.ptsUs } },
      })
      rows.mediaExtracted.push({
        media_id: event.mediaId,
        site_id: event.siteId,
        camera_id: event.cameraId,
        epoch: event.epoch,
        seq: event.seq,
        // the media's own time: extract adds the frame's place in the clip to it
        captured_at: iso(event.frameAt - Math.round(event.ptsUs / 1000)),
        frame_count: event.frameCount,
      })
      return
    }
    case topics.featuresPrepared.name: {
      const event = await codec.decode('FeaturesPrepared', record.value)
      hop(event.frameId)
      rows.frames.push({
        ...frameRow(event),
        frame_index: 0,
        status_rank: frameRanks.prepared,
        reason: '',
        bucket: '',
        object_key: '',
        object_sha256: '',
        width: event.pictureWidth,
        height: event.pictureHeight,
        parameters: { features: { version: event.stageVersion } },
      })
      rows.features.push({
        frame_id: event.frameId,
        preprocessing: event.preprocessing,
        reference: event.reference?.sha256 ?? '',
        camera_id: event.cameraId,
        frame_at: iso(event.frameAt),
        media_offset_us: event.mediaOffsetUs,
        bucket: event.object.bucket,
        object_key: event.object.key,
        object_sha256: event.object.sha256,
        picture_sha256: event.picture?.sha256 ?? '',
        zones: event.zones,
        parameters: { stageVersion: event.stageVersion, ...(event.reference ? { reference: event.reference.sha256 } : {}) },
        topic: record.topic,
        partition: record.partition,
        record_offset: record.offset,
        prepared_at: iso(event.preparedAt),
      })
      return
    }
    case topics.predictionsMade.name: {
      const event = await codec.decode('PredictionMade', record.value)
      hop(event.frameId)
      rows.predictions.push({
        frame_id: event.frameId,
        zone: event.zone,
        task: event.task,
        model_version: event.modelVersion,
        camera_id: event.cameraId,
        frame_at: iso(event.frameAt),
        media_offset_us: event.mediaOffsetUs,
        answer: event.answer,
        confidence: event.confidence,
        scores: event.classes.map((name, at) => ({ class: name, score: event.scores[at] })),
        model_name: event.modelName,
        model_digest: event.modelDigest,
        preprocessing: event.preprocessing,
        captured_at: iso(event.capturedAt),
        answered_at: iso(event.answeredAt),
        predict_ms: event.predictMs,
        alias: event.alias,
      })
      return
    }
    case topics.mediaLost.name: {
      const event = await codec.decode('MediaLost', record.value)
      rows.losses.push({
        camera_id: event.cameraId,
        epoch: event.epoch,
        seq_from: event.seqFrom,
        seq_to: event.seqTo,
        agent_id: event.agentId,
        reason: event.reason,
        lost_at: iso(event.lostAt),
      })
      return
    }
    case topics.agentsReported.name: {
      const event = await codec.decode('AgentReported', record.value)
      for (const camera of event.cameras) {
        rows.captures.push({
          camera_id: camera.cameraId,
          epoch: camera.epoch,
          agent_id: event.agentId,
          highest_seq: camera.highestSeq,
          forgotten_seq: camera.forgottenSeq,
          state: camera.state,
          message: camera.message,
          source_kind: camera.sourceKind,
          frames_per_second: camera.framesPerSecond,
          last_frame_at: camera.lastFrameAt > 0 ? iso(camera.lastFrameAt) : null,
          // by the broker's clock: an agent's may be set back
          reported_at: iso(record.timestamp),
        })
      }
      return
    }
    default:
      return
  }
}

interface AnyMedia {
  readonly mediaId: string
  readonly siteId: string
  readonly cameraId: string
  readonly agentId: string
  readonly epoch: string
  readonly seq: number
  readonly source: string
  readonly kind: string
  readonly lane: string
  readonly capturedAt: EpochMs
  readonly mediaOffsetUs: number | null
  readonly object: { readonly bucket: string; readonly key: string; readonly sha256: string; readonly bytes: number }
  readonly width: number
  readonly height: number
}

function mediaRow(event: AnyMedia): Row {
  return {
    media_id: event.mediaId,
    site_id: event.siteId,
    camera_id: event.cameraId,
    agent_id: event.agentId,
    epoch: event.epoch,
    seq: event.seq,
    source: event.source,
    kind: event.kind,
    lane: event.lane,
    captured_at: iso(event.capturedAt),
    media_offset_us: event.mediaOffsetUs,
    bucket: event.object.bucket,
    object_key: event.object.key,
    object_sha256: event.object.sha256,
    object_bytes: event.object.bytes,
    width: event.width,
    height: event.height,
    frame_count: null,
  }
}

function frameRow(event: {
  readonly frameId: string
  readonly mediaId: string
  readonly cameraId: string
  readonly epoch: string
  readonly seq: number
  readonly frameAt: EpochMs
  readonly mediaOffsetUs: number | null
}): Row {
  return {
    frame_id: event.frameId,
    media_id: event.mediaId,
    camera_id: event.cameraId,
    epoch: event.epoch,
    seq: event.seq,
    frame_at: iso(event.frameAt),
    media_offset_us: event.mediaOffsetUs,
  }
}

/** Between 1 and 9999, which PostgreSQL and everybody else can write. */
const isTime = (at: EpochMs): boolean => at > -62_135_596_800_000 && at < 253_402_300_800_000

/** A dead letter marks the media or frame it is about as rejected, when its value can still be read. */
async function addDeadLetter(rows: Rows, record: BusRecord, codec: Codec, hop: (subject: string) => void): Promise<void> {
  const { headers } = record
  const reason = headers['fl-reason'] ?? 'UNKNOWN'
  const origin = headers['fl-origin-topic'] ?? ''
  let subject = ''
  let cameraId = record.key
  try {
    if (reason === 'REPLAYED') subject = ''
    else if (origin === topics.framesExtracted.name || origin === topics.framesExtractedBackfill.name) {
      const event = await codec.decode('FrameExtracted', record.value)
      subject = event.frameId
      cameraId = event.cameraId
      rows.frames.push({
        ...frameRow(event),
        frame_index: event.index,
        status_rank: frameRanks.rejected,
        reason,
        bucket: event.object.bucket,
        object_key: event.object.key,
        object_sha256: event.object.sha256,
        width: event.width,
        height: event.height,
        parameters: {},
      })
    } else if (origin === topics.mediaCaptured.name || origin === topics.mediaBackfill.name) {
      const event = await codec.decode('MediaCaptured', record.value)
      subject = event.mediaId
      cameraId = event.cameraId
      // a time that is none may be what it was refused for: its seq is settled all the same
      const capturedAt = isTime(event.capturedAt) ? event.capturedAt : Number(headers['fl-origin-timestamp'] ?? record.timestamp)
      if (isUuid(subject))
        rows.media.push({
          ...mediaRow({ ...event, capturedAt }),
          status_rank: mediaRanks.rejected,
          reason,
          format: '',
          parameters: {},
          trace_id: traceIdOf(headers['traceparent']),
        })
    } else if (origin === topics.mediaValidated.name || origin === topics.mediaValidatedBackfill.name) {
      const event = await codec.decode('MediaValidated', record.value)
      subject = event.mediaId
      cameraId = event.cameraId
      if (isUuid(subject))
        rows.media.push({ ...mediaRow(event), status_rank: mediaRanks.rejected, reason, format: event.format, parameters: {}, trace_id: traceIdOf(headers['traceparent']) })
    }
  } catch {
    // the value is what could not be read; its id header is all there is
    subject = headers['ce_id'] ?? ''
  }
  const known = isUuid(subject)
  if (known) hop(subject)
  rows.deadLetters.push({
    topic: record.topic,
    partition: record.partition,
    record_offset: record.offset,
    stage: headers['fl-stage'] ?? '',
    reason,
    message: headers['fl-message'] ?? '',
    origin_topic: origin,
    origin_partition: Number(headers['fl-origin-partition'] ?? -1),
    origin_offset: Number(headers['fl-origin-offset'] ?? -1),
    camera_id: cameraId,
    subject_id: known ? subject : null,
    at: iso(record.timestamp),
  })
}

/** Several rows for one key within a batch, merged as the statement would merge them one after the other. */
function mergeByKey(rows: readonly Row[], key: string, merge: (before: Row, row: Row) => Row): Row[] {
  const merged = new Map<unknown, Row>()
  for (const row of rows) {
    const before = merged.get(row[key])
    merged.set(row[key], before ? merge(before, row) : row)
  }
  return [...merged.values()]
}

const mergedParameters = (before: Row, row: Row): object => ({ ...(before['parameters'] as object), ...(row['parameters'] as object) })
const highest = (before: Row, row: Row, name: string): number => Math.max(Number(before[name]), Number(row[name]))

/** As `upsertFrames` does. */
export function mergeFrames(rows: readonly Row[]): Row[] {
  return mergeByKey(rows, 'frame_id', (before, row) => {
    const both: Record<string, unknown> = { ...before }
    for (const name of ['reason', 'bucket', 'object_key', 'object_sha256']) if (row[name] !== '') both[name] = row[name]
    for (const name of ['status_rank', 'frame_index', 'width', 'height']) both[name] = highest(before, row, name)
    return { ...both, parameters: mergedParameters(before, row) }
  })
}

/** Where a medium came from and where it lies. */
const ofObject = ['source', 'lane', 'media_offset_us', 'bucket', 'object_key', 'object_sha256', 'object_bytes', 'trace_id']

/** As `upsertMedia` does. */
export function mergeMedia(rows: readonly Row[]): Row[] {
  return mergeByKey(rows, 'media_id', (before, row) => {
    const both: Record<string, unknown> = { ...before, kind: row['kind'] }
    const isBetter = before['object_key'] === '' || (before['format'] === '' && row['format'] !== '')
    if (isBetter) for (const name of ofObject) both[name] = row[name]
    for (const name of ['reason', 'agent_id', 'format']) if (row[name] !== '') both[name] = row[name]
    for (const name of ['status_rank', 'width', 'height']) both[name] = highest(before, row, name)
    return { ...both, frame_count: row['frame_count'] ?? before['frame_count'], parameters: mergedParameters(before, row) }
  })
}
