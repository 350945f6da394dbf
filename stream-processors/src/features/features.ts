/** frames.extracted → features.prepared: one decode per frame, one record and one object per preprocessing, all zones packed. */
import { Fault } from '@frameloop/kit/fault'
import { sha256Hex } from '@frameloop/kit/object-store'
import type { FrameExtracted, ObjectRef } from '@frameloop/schemas/events'
import { bucketName, processedKey } from '@frameloop/schemas/object-keys'
import { topics } from '@frameloop/schemas/topics'
import type { ObjectToPut, Outcome, Output, Stage, StageContext } from '../chain/stage.ts'
import { decodePicture, type Picture } from '../picture/decode-picture.ts'
import { channelsOf, neededSize, type Preprocessing, prepareZone, preprocessingDigest } from './prepare.ts'
import type { TaskZone, ZoneDirectory } from './zones.ts'

const version = '1'
/** Pixels travel in the record itself while it stays under 64 KiB, so that live inference and training need no GET. */
const inlineLimit = 60 * 1024

interface ZoneGroup {
  readonly preprocessing: Preprocessing
  readonly digest: string
  readonly reference?: ObjectRef
  readonly zones: readonly { readonly shape: TaskZone['shape']; readonly tasks: readonly string[] }[]
}

/** Zones by preprocessing and reference picture; a zone that several tasks ask about is prepared once. */
export function groupZones(zones: readonly TaskZone[]): ZoneGroup[] {
  const groups = new Map<string, Omit<ZoneGroup, 'zones'> & { readonly zones: Map<string, { shape: TaskZone['shape']; tasks: string[] }> }>()
  for (const { shape, task, preprocessing, reference } of zones) {
    const digest = preprocessingDigest(preprocessing)
    const key = `${digest} ${reference?.sha256}`
    const group = groups.get(key) ?? { preprocessing, digest, ...(reference ? { reference } : {}), zones: new Map() }
    groups.set(key, group)
    const zone = group.zones.get(shape.zone) ?? { shape, tasks: [] }
    group.zones.set(shape.zone, zone)
    if (task) zone.tasks.push(task)
  }
  return [...groups.values()].map((group) => ({ ...group, zones: [...group.zones.values()] }))
}

const references = new Map<string, Picture>()

/** Reference pictures are few, large and never change: they are decoded once. */
export async function referencePicture(object: ObjectRef, fetch: StageContext['fetch']): Promise<Picture> {
  const known = references.get(object.sha256)
  if (known) return known
  const picture = await decodePicture(await fetch(object))
  if (references.size >= 32) references.clear()
  references.set(object.sha256, picture)
  return picture
}

/** The largest size that any zone needs the whole picture at: one decode serves them all. */
export function decodeSize(zones: readonly TaskZone[]): { readonly width: number; readonly height: number } {
  const sizes = zones.map(({ shape, preprocessing }) => neededSize([shape], preprocessing))
  return { width: Math.max(...sizes.map(({ width }) => width)), height: Math.max(...sizes.map(({ height }) => height)) }
}

async function prepare(event: FrameExtracted, zones: readonly TaskZone[], bucketPrefix: string, context: StageContext): Promise<Outcome> {
  const picture = await decodePicture(await context.fetch(event.object), { atLeast: decodeSize(zones) })
  const outputs: Output[] = []
  const puts: ObjectToPut[] = []
  for (const group of groupZones(zones)) {
    const { width, height } = group.preprocessing
    const channels = channelsOf(group.preprocessing)
    const zoneBytes = width * height * channels
    const reference = group.reference ? await referencePicture(group.reference, context.fetch) : undefined
    const packed = new Uint8Array(zoneBytes * group.zones.length)
    const prepared = group.zones.map(({ shape, tasks }, at) => {
      const { rectangle, pixels, quality } = prepareZone(picture, shape, group.preprocessing, reference)
      packed.set(pixels, at * zoneBytes)
      return { zone: shape.zone, tasks, ...rectangle, offset: at * zoneBytes, shape: [height, width, channels], ...quality }
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
        reference: group.reference ?? null,
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
