/** media.validated → frames.extracted: an image is its own frame, without a copy; a clip gives the frames that are due. */
import { sha256Hex } from '@frameloop/kit/digest'
import { jpegSize } from '@frameloop/kit/jpeg-header'
import type { MediaValidated } from '@frameloop/schemas/events'
import { frameIdOf } from '@frameloop/schemas/ids'
import { bucketName, clipFrameKey } from '@frameloop/schemas/object-keys'
import { inLane, topics } from '@frameloop/schemas/topics'
import type { ObjectToPut, Outcome, Output, Stage, StageContext } from '../chain/stage.ts'
import { type Choice, type ClipTools, extractPictures } from '../clip.ts'

const version = '2'

export interface ExtractSettings extends ClipTools {
  readonly bucketPrefix: string
  readonly clipFrames: 'rate' | 'key-frames' | 'scene'
  /** Frames a second taken out of a clip, by rate. */
  readonly clipFramesPerSecond: number
  /** Share of the picture that must change for a new scene, 0..1. */
  readonly clipSceneChange: number
  /** At most this many frames of one clip. */
  readonly clipFrameLimit: number
}

function choiceOf({ clipFrames, clipFramesPerSecond, clipSceneChange }: ExtractSettings): Choice {
  if (clipFrames === 'scene') return { by: 'scene', change: clipSceneChange }
  return clipFrames === 'rate' ? { by: 'rate', perSecond: clipFramesPerSecond } : { by: 'key-frames' }
}

const originOf = (event: MediaValidated) => {
  const { siteId, cameraId, mediaId, epoch, seq, lane, source, arrivedAt, validatedAt } = event
  return { siteId, cameraId, mediaId, epoch, seq, lane, source, arrivedAt, validatedAt }
}

async function extract(event: MediaValidated, settings: ExtractSettings, context: StageContext): Promise<Outcome> {
  const common = { ...originOf(event), motion: event.motion, extractedAt: context.now(), stageVersion: version }
  if (event.kind === 'image') {
    const frameId = frameIdOf(event.mediaId, 0)
    const frame = {
      ...common,
      frameId,
      frameAt: event.capturedAt,
      mediaOffsetUs: event.mediaOffsetUs,
      index: 0,
      frameCount: 1,
      ptsUs: 0,
      object: event.object,
      width: event.width,
      height: event.height,
    }
    return {
      kind: 'emit',
      outputs: [{ topic: inLane(event.lane, topics.framesExtracted, topics.framesExtractedBackfill), key: event.cameraId, id: frameId, time: event.capturedAt, event: frame }],
    }
  }
  const bytes = await context.fetch(event.object)
  const pictures = await extractPictures(bytes, choiceOf(settings), settings.clipFrameLimit, settings, context.signal)
  const puts: ObjectToPut[] = []
  const outputs: Output[] = pictures.map(({ jpeg, ptsUs }, index) => {
    const frameId = frameIdOf(event.mediaId, ptsUs)
    const frameAt = event.capturedAt + Math.round(ptsUs / 1000)
    const key = clipFrameKey(event, frameId)
    const sha256 = sha256Hex(jpeg)
    puts.push({ role: 'processed', key, body: jpeg, sha256, contentType: 'image/jpeg', metadata: { 'frame-id': frameId, 'media-id': event.mediaId } })
    const object = { bucket: bucketName(settings.bucketPrefix, 'processed'), key, sha256, bytes: jpeg.length, versionId: '', contentType: 'image/jpeg' }
    const frame = {
      ...common,
      frameId,
      frameAt,
      // a clip that is no part of anything longer has a time, and no place in it
      mediaOffsetUs: event.mediaOffsetUs === null ? null : event.mediaOffsetUs + ptsUs,
      index,
      frameCount: pictures.length,
      ptsUs,
      object,
      // as it is shown: what a camera took on its side lies in the clip as it was taken
      ...jpegSize(jpeg),
    }
    return { topic: inLane(event.lane, topics.framesExtracted, topics.framesExtractedBackfill), key: event.cameraId, id: frameId, time: frameAt, event: frame }
  })
  return { kind: 'emit', outputs, puts }
}

export function extractStage(settings: ExtractSettings): Stage<'MediaValidated'> {
  // a clip may take a minute and its pictures are held until they are stored
  return {
    name: 'extract',
    version,
    batch: 16,
    inputs: [topics.mediaValidated],
    backlog: [topics.mediaValidatedBackfill],
    outputs: [topics.framesExtracted, topics.framesExtractedBackfill],
    work: ({ event }, context) => extract(event, settings, context),
  }
}
