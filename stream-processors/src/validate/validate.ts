/** media.captured, media.backfill → media.validated: the bytes are what was announced, whole, of a known kind, and new. */
import { Fault } from '@frameloop/kit/fault'
import { sha256Hex } from '@frameloop/kit/object-store'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { topics } from '@frameloop/schemas/topics'
import type { ObjectToPut, Outcome, Stage, StageContext } from '../chain/stage.ts'
import { type ClipTools, probeClip } from '../clip.ts'
import { decodePicture, sniffPicture } from '../picture/decode-picture.ts'
import { measureQuality } from '../picture/quality.ts'
import { addSeq, type Ranges } from './seen-seqs.ts'

const version = '1'

interface Measured {
  readonly format: string
  readonly width: number
  readonly height: number
  readonly durationUs: number
  readonly brightness: number
  readonly sharpness: number
}

async function measurePicture(bytes: Buffer): Promise<Measured> {
  // a scaled decode reads every bit of the data, so damage shows, at a fraction of the cost
  const picture = await decodePicture(bytes, { atLeast: { width: 80, height: 60 } })
  const { brightness, sharpness } = measureQuality(picture.rgb, picture.width, picture.height)
  return { format: sniffPicture(bytes) ?? '', width: picture.fullWidth, height: picture.fullHeight, durationUs: 0, brightness, sharpness }
}

/** Refused content is kept where nothing reads it by itself: for whoever wants to know what it was. */
function quarantined({ object, mediaId, cameraId }: MediaCaptured, bytes: Buffer, reason: string): ObjectToPut {
  const metadata = { 'media-id': mediaId, 'camera-id': cameraId, reason }
  return { role: 'quarantine', key: object.key, body: bytes, sha256: sha256Hex(bytes), contentType: 'application/octet-stream', metadata }
}

async function validate(event: MediaCaptured, tools: ClipTools, context: StageContext): Promise<Outcome> {
  const bytes = await context.fetch(event.object)
  const outcome = await judge(event, bytes, tools, context)
  return outcome.kind === 'reject' ? { ...outcome, puts: [quarantined(event, bytes, outcome.reason)] } : outcome
}

async function judge(event: MediaCaptured, bytes: Buffer, tools: ClipTools, context: StageContext): Promise<Outcome> {
  if (bytes.length !== event.object.bytes)
    return { kind: 'reject', reason: 'SIZE_MISMATCH', message: `The object holds ${bytes.length} bytes, ${event.object.bytes} were announced` }
  const sha256 = sha256Hex(bytes)
  if (sha256 !== event.object.sha256) return { kind: 'reject', reason: 'DIGEST_MISMATCH', message: `The object hashes to ${sha256}, ${event.object.sha256} was announced` }
  let measured: Measured
  try {
    if (event.kind === 'clip') {
      const clip = await probeClip(bytes, tools, context.signal)
      measured = { format: clip.format, width: clip.width, height: clip.height, durationUs: clip.durationUs, brightness: 0, sharpness: 0 }
    } else measured = await measurePicture(bytes)
  } catch (thrown) {
    if (thrown instanceof Fault) return { kind: 'reject', reason: thrown.code, message: thrown.message }
    throw thrown
  }
  const now = context.now()
  return {
    kind: 'emit',
    outputs: [
      { topic: topics.mediaValidated, key: event.cameraId, id: event.mediaId, time: event.capturedAt, event: { ...event, ...measured, validatedAt: now, stageVersion: version } },
    ],
  }
}

/** Of one epoch: which seqs were judged, and those refused, with how often they had been sent again by then. */
interface Remembered {
  readonly seen: Ranges
  readonly refused: Readonly<Record<string, number>>
}

/**
 * Announcements come at least once: one that was judged before leaves nothing behind a second time.
 * Only what was refused may come again, and only when somebody sent it again since.
 */
export function remember(outcome: Outcome, seq: number, redrives: number, before: Remembered | undefined): { readonly outcome: Outcome; readonly remember: Remembered } {
  const { seen, refused } = before ?? { seen: [], refused: {} }
  const added = addSeq(seen, seq)
  const refusedAt = refused[seq]
  const isSentAgain = refusedAt !== undefined && redrives > refusedAt
  if (!added.isNew && !isSentAgain) return { outcome: { kind: 'emit', outputs: [] }, remember: { seen, refused } }
  const { [seq]: _, ...others } = refused
  return { outcome, remember: { seen: added.seen, refused: outcome.kind === 'reject' ? { ...others, [seq]: redrives } : others } }
}

export function validateStage(tools: ClipTools): Stage<'MediaCaptured'> {
  return {
    name: 'validate',
    version,
    inputs: [topics.mediaCaptured, topics.mediaBackfill],
    outputs: [topics.mediaValidated],
    work: ({ event }, context) => validate(event, tools, context),
    memory: {
      keyOf: ({ cameraId, epoch }) => `${cameraId} ${epoch}`,
      judge: ({ event, record }, outcome, remembered) => remember(outcome, event.seq, Number(record.headers['fl-redrives'] ?? 0), remembered as Remembered | undefined),
    },
  }
}
