/** media.captured, media.backfill → media.validated: the bytes are what was announced, whole, of a known kind, and new. */
import { Fault } from '@frameloop/kit/fault'
import { sha256Hex } from '@frameloop/kit/object-store'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { topics } from '@frameloop/schemas/topics'
import type { Outcome, Stage, StageContext } from '../chain/stage.ts'
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

async function validate(event: MediaCaptured, tools: ClipTools, context: StageContext): Promise<Outcome> {
  const bytes = await context.fetch(event.object)
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

export function validateStage(tools: ClipTools): Stage<'MediaCaptured'> {
  return {
    name: 'validate',
    version,
    inputs: [topics.mediaCaptured, topics.mediaBackfill],
    outputs: [topics.mediaValidated],
    work: ({ event }, context) => validate(event, tools, context),
    memory: {
      keyOf: ({ cameraId, epoch }) => `${cameraId} ${epoch}`,
      // announcements come at least once: one that was judged before leaves nothing behind a second time
      judge: ({ event }, outcome, remembered) => {
        const { isNew, seen } = addSeq((remembered as Ranges | undefined) ?? [], event.seq)
        return isNew ? { outcome, remember: seen } : { outcome: { kind: 'emit', outputs: [] }, remember: seen }
      },
    },
  }
}
