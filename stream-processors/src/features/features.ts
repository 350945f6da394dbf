/** frames.extracted → features.prepared: one decode per frame, one record and one object per preprocessing, all zones packed. */
import { Fault } from '@frameloop/kit/fault'
import { sha256Hex } from '@frameloop/kit/object-store'
import type { FrameExtracted } from '@frameloop/schemas/events'
import { bucketName, processedKey } from '@frameloop/schemas/object-keys'
import { topics } from '@frameloop/schemas/topics'
import type { ObjectToPut, Outcome, Output, Stage, StageContext } from '../chain/stage.ts'
import { decodePicture } from '../picture/decode-picture.ts'
import { neededSize, type Preprocessing, prepareZone, preprocessingDigest } from './prepare.ts'
import type { TaskZone, ZoneDirectory } from './zones.ts'

const version = '1'
/** Pixels travel in the record itself while it stays under 64 KiB, so that live inference and training need no GET. */
const inlineLimit = 60 * 1024

/** Zones by preprocessing; a zone that several tasks ask about is prepared once. */
export function groupZones(
  zones: readonly TaskZone[],
): { readonly preprocessing: Preprocessing; readonly digest: string; readonly zones: readonly { readonly shape: TaskZone['shape']; readonly tasks: readonly string[] }[] }[] {
  const groups = new Map<string, { preprocessing: Preprocessing; zones: Map<string, { shape: TaskZone['shape']; tasks: string[] }> }>()
  for (const { shape, task, preprocessing } of zones) {
    const digest = preprocessingDigest(preprocessing)
    const group = groups.get(digest) ?? { preprocessing, zones: new Map() }
    groups.set(digest, group)
    const zone = group.zones.get(shape.zone) ?? { shape, tasks: [] }
    group.zones.set(shape.zone, zone)
    if (task) zone.tasks.push(task)
  }
  return [...groups].map(([digest, group]) => ({ digest, preprocessing: group.preprocessing, zones: [...group.zones.values()] }))
}

async function prepare(event: FrameExtracted, zones: readonly TaskZone[], bucketPrefix: string, context: StageContext): Promise<Outcome> {
  const bytes = await context.fetch(event.object)
  const groups = groupZones(zones)
  const sizes = groups.map((group) =>
    neededSize(
      group.zones.map(({ shape }) => shape),
      group.preprocessing,
    ),
  )
  const picture = await decodePicture(bytes, { atLeast: { width: Math.max(...sizes.map(({ width }) => width)), height: Math.max(...sizes.map(({ height }) => height)) } })
  const outputs: Output[] = []
  const puts: ObjectToPut[] = []
  for (const group of groups) {
    const { width, height } = group.preprocessing
    const zoneBytes = width * height * 3
    const packed = new Uint8Array(zoneBytes * group.zones.length)
    const prepared = group.zones.map(({ shape, tasks }, at) => {
      const { rectangle, pixels, quality } = prepareZone(picture, shape, group.preprocessing)
      packed.set(pixels, at * zoneBytes)
      return { zone: shape.zone, tasks, ...rectangle, offset: at * zoneBytes, shape: [height, width, 3], ...quality }
    })
    const sha256 = sha256Hex(packed)
    const key = processedKey(group.digest, event.cameraId, event.frameAt, event.frameId, sha256)
    puts.push({ role: 'processed', key, body: packed, sha256, contentType: 'application/octet-stream', metadata: { 'frame-id': event.frameId, preprocessing: group.digest } })
    const { siteId, cameraId, mediaId, epoch, seq, lane, source, frameId, frameAt, mediaOffsetUs } = event
    outputs.push({
      topic: topics.featuresPrepared,
      key: cameraId,
      id: frameId,
      time: frameAt,
      event: {
        ...{ siteId, cameraId, mediaId, epoch, seq, lane, source, frameId, frameAt, mediaOffsetUs },
        preprocessing: group.digest,
        object: { bucket: bucketName(bucketPrefix, 'processed'), key, sha256, bytes: packed.length, versionId: '', contentType: 'application/octet-stream' },
        picture: event.object,
        pictureWidth: picture.fullWidth,
        pictureHeight: picture.fullHeight,
        zones: prepared,
        pixels: packed.length <= inlineLimit ? Buffer.from(packed.buffer) : null,
        preparedAt: context.now(),
        stageVersion: version,
      },
    })
  }
  return { kind: 'emit', outputs, puts }
}

export function featuresStage(directory: ZoneDirectory, bucketPrefix: string): Stage<'FrameExtracted'> {
  return {
    name: 'features',
    version,
    inputs: [topics.framesExtracted],
    outputs: [topics.featuresPrepared],
    // prepared without its zones a frame would stay so for good
    work: async ({ event }, context) =>
      directory.loaded
        ? prepare(event, directory.of(event.cameraId), bucketPrefix, context)
        : { kind: 'retry', cause: new Fault('DATABASE_UNAVAILABLE', 'The zones have not been read yet') },
  }
}
