/** frames.extracted → features.prepared: one decode per frame, one record and one object per preprocessing, all zones packed. */
import { Fault } from '@frameloop/kit/fault'
import { sha256Hex } from '@frameloop/kit/object-store'
import type { EpochMs } from '@frameloop/kit/units'
import type { FeaturesPrepared, FrameExtracted, ObjectRef } from '@frameloop/schemas/events'
import { bucketName, processedKey } from '@frameloop/schemas/object-keys'
import { topics } from '@frameloop/schemas/topics'
import type { ObjectToPut, Outcome, Output, Stage, StageContext } from '../chain/stage.ts'
import { decodePicture, type Picture } from '../picture/decode-picture.ts'
import { channelsOf, neededSize, type Preprocessing, prepareZone, preprocessingDigest } from './prepare.ts'
import type { TaskZone, ZoneDirectory } from './zones.ts'

const version = '2'
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

/** Where prepared pixels go, and how a picture is read. */
export interface PreparePlace {
  readonly bucket: string
  /** Before every key; empty for the live chain. */
  readonly prefix: string
  readonly fetch: StageContext['fetch']
  readonly now: () => EpochMs
}

/** One event and one object per preprocessing. The chain and replays call this. */
export async function prepareFrame(
  frame: FrameExtracted,
  zones: readonly TaskZone[],
  place: PreparePlace,
): Promise<{ readonly event: FeaturesPrepared; readonly put: ObjectToPut }[]> {
  const picture = await decodePicture(await place.fetch(frame.object), { atLeast: decodeSize(zones) })
  const made: { event: FeaturesPrepared; put: ObjectToPut }[] = []
  for (const { preprocessing, digest, reference: object, zones: grouped } of groupZones(zones)) {
    const { width, height } = preprocessing
    const channels = channelsOf(preprocessing)
    const zoneBytes = width * height * channels
    const reference = object ? await referencePicture(object, place.fetch) : undefined
    const packed = new Uint8Array(zoneBytes * grouped.length)
    const prepared = grouped.map(({ shape, tasks }, at) => {
      const { rectangle, pixels, quality } = prepareZone(picture, shape, preprocessing, reference)
      packed.set(pixels, at * zoneBytes)
      return { zone: shape.zone, tasks, ...rectangle, offset: at * zoneBytes, shape: [height, width, channels], ...quality }
    })
    const sha256 = sha256Hex(packed)
    const key = place.prefix + processedKey(digest, frame.cameraId, frame.frameAt, frame.frameId, sha256)
    const contentType = 'application/octet-stream'
    const { siteId, cameraId, mediaId, epoch, seq, lane, source, frameId, frameAt, mediaOffsetUs } = frame
    made.push({
      put: { role: 'processed', key, body: packed, sha256, contentType, metadata: { 'frame-id': frameId, preprocessing: digest } },
      event: {
        ...{ siteId, cameraId, mediaId, epoch, seq, lane, source, frameId, frameAt, mediaOffsetUs },
        preprocessing: digest,
        object: { bucket: place.bucket, key, sha256, bytes: packed.length, versionId: '', contentType },
        picture: frame.object,
        reference: object ?? null,
        pictureWidth: picture.fullWidth,
        pictureHeight: picture.fullHeight,
        zones: prepared,
        pixels: packed.length <= inlineLimit ? Buffer.from(packed.buffer) : null,
        preparedAt: place.now(),
        stageVersion: version,
      },
    })
  }
  return made
}

async function prepare(frame: FrameExtracted, zones: readonly TaskZone[], bucketPrefix: string, { fetch, now }: StageContext): Promise<Outcome> {
  const made = await prepareFrame(frame, zones, { bucket: bucketName(bucketPrefix, 'processed'), prefix: '', fetch, now })
  return {
    kind: 'emit',
    outputs: made.map(({ event }): Output => ({ topic: topics.featuresPrepared, key: frame.cameraId, id: frame.frameId, time: frame.frameAt, event })),
    puts: made.map(({ put }) => put),
  }
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
