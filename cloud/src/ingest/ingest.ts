/**
 * Uploads: stored and announced like an agent's frames, exactly once per (source, Idempotency-Key).
 *
 *   request ─▶ row in `uploads` (its seq is taken here) ─▶ S3 ─▶ Kafka ─▶ row marked announced ─▶ answer
 *
 * I1  A repeat with the same key and content gets the same answer and leaves nothing behind a second time.
 * I2  The same key with other content is refused: a key names one content for good.
 * I3  What was stored but not announced (a crash, Kafka away) is announced later by `announceOpen`.
 */

import type { KeyObject } from 'node:crypto'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import type { Producer } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { Places } from '@frameloop/kit/places'
import { inTransaction, type Pool } from '@frameloop/kit/postgres'
import type { EpochMs } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { frameIdOf, ingestAgentId, mintEpoch, uploadMediaIdOf } from '@frameloop/schemas/ids'
import { bucketName, contentTypeOf, rawKey } from '@frameloop/schemas/object-keys'
import { signClaim, withSignature } from '@frameloop/schemas/signature'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { sniffClip } from '@frameloop/stream-processors/clip'
import { decodePicture } from '@frameloop/stream-processors/picture/decode-picture'
import { sniffPicture } from '@frameloop/stream-processors/picture/picture-header'

export interface Upload {
  /** Acts as a camera. */
  readonly source: string
  readonly siteId: string
  readonly bytes: Buffer
  readonly capturedAt: EpochMs
  readonly idempotencyKey: string | undefined
  /** Its sender says so. */
  readonly isVideo: boolean
}

export interface Accepted {
  readonly mediaId: string
  /** Of an image; the frames of a clip are known once it was extracted. */
  readonly frameId: string | undefined
  readonly seq: number
  readonly sha256: string
  readonly repeated: boolean
}

export interface IngestTools {
  readonly pool: Pool
  readonly store: ObjectStore
  readonly producer: Producer
  readonly codec: Codec
  readonly bucketPrefix: string
  readonly log: Log
  /** What is announced is signed with it. */
  readonly signingKey?: KeyObject
}

const extensions = { jpeg: 'jpg', png: 'png', webp: 'webp' } as const

/** A picture is looked at one at a time: a few large ones at once would hold all memory. */
const looking = new Places(1)

/** True kind and extension by content; a sequence of JPEGs is told from one by what its sender calls it. Throws `UPLOAD_INVALID`; a picture is decoded, so that damage is told to whoever sent it. */
async function inspect({ bytes, isVideo }: Upload): Promise<{ readonly kind: 'image' | 'clip'; readonly extension: string; readonly width: number; readonly height: number }> {
  const picture = isVideo ? undefined : sniffPicture(bytes)
  if (picture) {
    const { fullWidth, fullHeight } = await looking.run(() => decodePicture(bytes, { atLeast: { width: 32, height: 32 }, always: true }))
    return { kind: 'image', extension: extensions[picture], width: fullWidth, height: fullHeight }
  }
  const clip = sniffClip(bytes)
  if (clip) return { kind: 'clip', extension: clip, width: 0, height: 0 }
  throw new Fault('UPLOAD_INVALID', 'The body is no JPEG, PNG or WebP picture and no MP4, Matroska or AVI clip')
}

interface Row {
  readonly media_id: string
  readonly epoch: string
  readonly seq: number
  readonly sha256: string
  readonly event: MediaCaptured
  readonly announced_at: Date | null
}

/** One epoch per source for good: the database is this spool, and it is never reopened empty. */
async function take(tools: IngestTools, upload: Upload, key: string, sha256: string): Promise<{ readonly row: Row; readonly repeated: boolean }> {
  const about = await inspect(upload)
  return inTransaction(tools.pool, async (client) => {
    await client.query('select pg_advisory_xact_lock(hashtext($1))', [`frameloop.uploads.${upload.source}`])
    const { rows } = await client.query<Row>('select media_id, epoch, seq, sha256, event, announced_at from uploads where source = $1 and idempotency_key = $2', [
      upload.source,
      key,
    ])
    const known = rows[0]
    if (known) {
      if (known.sha256 !== sha256) throw new Fault('UPLOAD_CONFLICT', `Idempotency-Key ${key} of source ${upload.source} names other content already`, { source: upload.source })
      return { row: known, repeated: true }
    }
    const last = await client.query<{ epoch: string; seq: number }>('select epoch, seq from uploads where source = $1 order by seq desc limit 1', [upload.source])
    const epoch = last.rows[0]?.epoch ?? mintEpoch()
    const seq = (last.rows[0]?.seq ?? 0) + 1
    const mediaId = uploadMediaIdOf(upload.source, key)
    const object = {
      bucket: bucketName(tools.bucketPrefix, 'raw'),
      key: rawKey({ siteId: upload.siteId, cameraId: upload.source, mediaId, capturedAt: upload.capturedAt, extension: about.extension }),
      sha256,
      bytes: upload.bytes.length,
      versionId: '',
      contentType: contentTypeOf(about.extension),
    }
    const event: MediaCaptured = {
      siteId: upload.siteId,
      cameraId: upload.source,
      mediaId,
      epoch,
      seq,
      lane: 'live',
      source: 'upload',
      kind: about.kind,
      agentId: ingestAgentId,
      capturedAt: upload.capturedAt,
      mediaOffsetUs: null,
      object,
      width: about.width,
      height: about.height,
      motion: null,
      sourceName: 'upload',
    }
    await client.query('insert into uploads (source, idempotency_key, media_id, epoch, seq, sha256, event) values ($1, $2, $3, $4, $5, $6, $7)', [
      upload.source,
      key,
      mediaId,
      epoch,
      seq,
      sha256,
      event,
    ])
    // what the source has sent so far is the ledger's left-hand side
    await client.query(
      `insert into captures (camera_id, epoch, agent_id, highest_seq, state, source_kind, last_frame_at, reported_at) values ($1, $2, 'ingest', $3, 'upload', 'upload', now(), now())
       on conflict (camera_id, epoch) do update set highest_seq = greatest(captures.highest_seq, excluded.highest_seq), last_frame_at = now(), reported_at = now()`,
      [upload.source, epoch, seq],
    )
    return { row: { media_id: mediaId, epoch, seq, sha256, event, announced_at: null }, repeated: false }
  })
}

/** Our word for an upload; undefined where we have no key. */
function signatureOf({ signingKey }: IngestTools, event: MediaCaptured): string | undefined {
  return signingKey && signClaim({ ...event, sha256: event.object.sha256 }, signingKey)
}

async function announce(tools: IngestTools, event: MediaCaptured): Promise<void> {
  const about = { key: event.cameraId, id: event.mediaId, time: event.capturedAt, source: 'ingest', traceparent: newTraceparent() }
  const record = await recordOf(tools.codec, topics.mediaCaptured, event, about)
  await tools.producer.send({ topic: topics.mediaCaptured.name, acks: -1, messages: [withSignature(record, signatureOf(tools, event))] })
  await tools.pool.query('update uploads set announced_at = now() where media_id = $1', [event.mediaId])
}

export async function ingest(upload: Upload, tools: IngestTools): Promise<Accepted> {
  const sha256 = sha256Hex(upload.bytes)
  const key = upload.idempotencyKey ?? `${upload.capturedAt} ${sha256}`
  const { row, repeated } = await take(tools, upload, key, sha256)
  const { event } = row
  if (row.announced_at === null) {
    const signature = signatureOf(tools, event)
    await tools.store.putOnce({
      bucket: event.object.bucket,
      key: event.object.key,
      body: upload.bytes,
      sha256,
      contentType: event.object.contentType,
      metadata: {
        'media-id': event.mediaId,
        'camera-id': event.cameraId,
        epoch: event.epoch,
        seq: String(event.seq),
        'captured-at': String(event.capturedAt),
        ...(signature === undefined ? {} : { signature }),
      },
    })
    await announce(tools, event)
  }
  return { mediaId: event.mediaId, frameId: event.kind === 'image' ? frameIdOf(event.mediaId, 0) : undefined, seq: row.seq, sha256, repeated }
}

/** How long a sender may take to come back with the bytes that a crash of ours has cost. */
const senderLimit = '10 minutes'

/** I3. What lies in the store is announced; what never arrived there only its sender has, and after a while its seq is told as lost. */
export async function announceOpen(tools: IngestTools): Promise<number> {
  const { rows } = await tools.pool.query<Row & { overdue: boolean }>(
    `select media_id, epoch, seq, sha256, event, announced_at, received_at < now() - interval '${senderLimit}' as overdue from uploads
     where announced_at is null and lost_at is null and received_at < now() - interval '10 seconds' order by received_at limit 1000`,
  )
  let announced = 0
  for (const { event, overdue } of rows) {
    if (await tools.store.head(event.object.bucket, event.object.key)) {
      await announce(tools, event)
      announced += 1
    } else if (overdue) await tellLost(tools, event)
  }
  return announced
}

async function tellLost(tools: IngestTools, { siteId, cameraId, mediaId, epoch, seq, agentId }: MediaCaptured): Promise<void> {
  const lostAt = Date.now()
  const loss = { siteId, cameraId, epoch, seqFrom: seq, seqTo: seq, agentId, reason: 'never stored', lostAt }
  const about = { key: cameraId, id: mediaId, time: lostAt, source: 'ingest', traceparent: '' }
  await tools.producer.send({ topic: topics.mediaLost.name, acks: -1, messages: [await recordOf(tools.codec, topics.mediaLost, loss, about)] })
  await tools.pool.query('update uploads set lost_at = now() where media_id = $1', [mediaId])
}
