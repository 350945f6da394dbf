/** media.validated → frames.extracted: an image is its own frame, without a copy; a clip gives the frames that are due. */
import { Fault } from '@frameloop/kit/fault'
import { sha256Hex } from '@frameloop/kit/object-store'
import type { MediaValidated } from '@frameloop/schemas/events'
import { frameIdOf } from '@frameloop/schemas/ids'
import { bucketName, clipFrameKey } from '@frameloop/schemas/object-keys'
import { topics } from '@frameloop/schemas/topics'
import type { ObjectToPut, Outcome, Output, Stage, StageContext } from '../chain/stage.ts'
import { type ClipTools, chooseFrames, extractFrames, probeClip } from '../clip.ts'

const version = '1'

export interface ExtractSettings extends ClipTools {
  readonly bucketPrefix: string
  /** Frames a second taken out of a clip. */
  readonly clipFramesPerSecond: number
  /** At most this many frames of one clip. */
  readonly clipFrameLimit: number
}

const originOf = (event: MediaValidated) => {
  const { siteId, cameraId, mediaId, epoch, seq, lane, source } = event
  return { siteId, cameraId, mediaId, epoch, seq, lane, source }
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
    return { kind: 'emit', outputs: [{ topic: topics.framesExtracted, key: event.cameraId, id: frameId, time: event.capturedAt, event: frame }] }
  }
  const bytes = await context.fetch(event.object)
  try {
    const { times } = await probeClip(bytes, settings, context.signal)
    const chosen = chooseFrames(times, settings.clipFramesPerSecond).slice(0, settings.clipFrameLimit)
    const jpegs = await extractFrames(bytes, chosen, settings, context.signal)
    const puts: ObjectToPut[] = []
    const outputs: Output[] = jpegs.map((jpeg, index) => {
      const ptsUs = times[chosen[index] ?? 0] ?? 0
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
        mediaOffsetUs: (event.mediaOffsetUs ?? 0) + ptsUs,
        index,
        frameCount: jpegs.length,
        ptsUs,
        object,
        width: event.width,
        height: event.height,
      }
      return { topic: topics.framesExtracted, key: event.cameraId, id: frameId, time: frameAt, event: frame }
    })
    return { kind: 'emit', outputs, puts }
  } catch (thrown) {
    if (thrown instanceof Fault) return { kind: 'reject', reason: thrown.code, message: thrown.message }
    throw thrown
  }
}

export function extractStage(settings: ExtractSettings): Stage<'MediaValidated'> {
  // a clip may take a minute and its pictures are held until they are stored
  return {
    name: 'extract',
    version,
    batch: 16,
    inputs: [topics.mediaValidated],
    outputs: [topics.framesExtracted],
    work: ({ event }, context) => extract(event, settings, context),
  }
}
