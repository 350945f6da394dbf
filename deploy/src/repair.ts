/**
 * `frameloop verify --repair`: what can be put right without a doubt.
 * Z1  Rows first: what looks like an orphan may be named by a row that is written again.
 * Z2  What lies in the raw bucket with its identity on it is announced again; validate knows what it has seen. Captured bytes
 *     are never deleted.
 * Z3  What a stage prepared and no row names is removed once it is older than a limit: a batch that was given up left it,
 *     and whatever still works on it would have named it long ago.
 */
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { Ms } from '@frameloop/kit/units'
import { type Codec, openCodec, recordOf } from '@frameloop/schemas/codec'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { isUuid } from '@frameloop/schemas/ids'
import { bucketName, contentTypeOf } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { withSignature } from '@frameloop/schemas/signature'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { planReadings, readHistory } from '@frameloop/stream-processors/archive/history'
import { writeRowsOf } from '@frameloop/stream-processors/catalog/rebuild'
import type { Position } from '@frameloop/stream-processors/chain/bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { type Finding, unnamed, type VerifyTools } from './verify.ts'

export interface RepairTools extends VerifyTools {
  readonly registryUrl: string
  /** Prepared objects that no row names are removed when they are older (Z3). */
  readonly orphanAge: Ms
}

export interface Repaired {
  readonly written: number
  readonly announced: number
  readonly removed: number
  /** What was left as it is, with why. */
  readonly left: readonly (readonly [string, string])[]
}

/** The announcement of a raw object, from the identity it carries; undefined when it carries none. */
export function announcementOf(
  place: { readonly bucket: string; readonly key: string },
  about: { readonly sha256: string | undefined; readonly bytes: number; readonly versionId: string; readonly metadata: Readonly<Record<string, string>> },
): MediaCaptured | undefined {
  const { metadata } = about
  const mediaId = metadata['media-id'] ?? ''
  const seq = Number(metadata['seq'])
  const capturedAt = Number(metadata['captured-at'])
  const extension = place.key.split('.').at(-1) ?? ''
  if (!isUuid(mediaId) || !metadata['camera-id'] || !metadata['epoch'] || !Number.isInteger(seq) || !Number.isFinite(capturedAt) || !about.sha256) return undefined
  return {
    siteId: metadata['site-id'] ?? place.key.split('/')[1] ?? '',
    cameraId: metadata['camera-id'],
    mediaId,
    epoch: metadata['epoch'],
    seq,
    lane: 'backlog',
    source: metadata['agent-id'] ? 'camera' : 'upload',
    kind: ['mp4', 'mkv', 'avi'].includes(extension) ? 'clip' : 'image',
    agentId: metadata['agent-id'] ?? 'ingest',
    capturedAt,
    mediaOffsetUs: metadata['media-offset-us'] === undefined ? null : Number(metadata['media-offset-us']),
    object: { ...place, sha256: about.sha256, bytes: about.bytes, versionId: about.versionId, contentType: contentTypeOf(extension) },
    width: 0,
    height: 0,
    motion: null,
    sourceName: 'announced again by verify',
  }
}

/** Z1: reads the records once more and writes their rows. Returns how many have some. */
async function writeAgain(positions: readonly Position[], codec: Codec, tools: RepairTools, left: [string, string][]): Promise<number> {
  const { pool, store, brokers } = tools
  const history = { brokers, sql: pool, store }
  const wanted = new Set(positions.map(({ topic, partition, offset }) => `${topic}/${partition}/${offset}`))
  // one range per partition, from the first to the last that is wanted
  const ranges = new Map<string, { topic: string; partition: number; from: number; until: number }>()
  for (const { topic, partition, offset } of positions) {
    const range = ranges.get(`${topic} ${partition}`) ?? { topic, partition, from: offset, until: offset + 1 }
    ranges.set(`${topic} ${partition}`, { topic, partition, from: Math.min(range.from, offset), until: Math.max(range.until, offset + 1) })
  }
  let written = 0
  let batch: BusRecord[] = []
  const flush = async (): Promise<void> => {
    const unreadable = await writeRowsOf(batch, pool, codec)
    written += batch.length - unreadable.length
    for (const { topic, partition, offset } of unreadable) left.push([`${topic}/${partition}/${offset}`, 'its value cannot be read'])
    batch = []
  }
  for await (const record of readHistory(await planReadings([...ranges.values()], history), history, 'frameloop.repair', new AbortController().signal)) {
    if (!wanted.has(`${record.topic}/${record.partition}/${record.offset}`)) continue
    batch.push(record)
    if (batch.length >= 500) await flush()
  }
  await flush()
  return written
}

/** Z2. */
async function announceAgain(keys: readonly string[], codec: Codec, tools: RepairTools, left: [string, string][]): Promise<number> {
  if (keys.length === 0) return 0
  const bucket = bucketName(tools.bucketPrefix, 'raw')
  const producer = openKafka(tools.brokers, 'verify', openLog('verify', 'error')).producer()
  let announced = 0
  await producer.connect()
  try {
    for (const key of keys) {
      const about = await tools.store.head(bucket, key)
      const event = about ? announcementOf({ bucket, key }, about) : undefined
      if (!event) {
        left.push([key, 'it carries no identity'])
        continue
      }
      const record = await recordOf(codec, topics.mediaBackfill, event, {
        key: event.cameraId,
        id: event.mediaId,
        time: event.capturedAt,
        source: 'verify',
        traceparent: newTraceparent(),
      })
      // the agent's own word, which travels with the object
      await producer.send({ topic: topics.mediaBackfill.name, acks: -1, messages: [withSignature(record, about?.metadata['signature'])] })
      announced += 1
    }
  } finally {
    await producer.disconnect()
  }
  return announced
}

/** Z3. */
async function removeOrphans(orphans: readonly NonNullable<Finding['object']>[], tools: RepairTools, left: [string, string][]): Promise<number> {
  const [old, young] = [
    orphans.filter(({ modifiedAt }) => Date.now() - modifiedAt > tools.orphanAge),
    orphans.filter(({ modifiedAt }) => Date.now() - modifiedAt <= tools.orphanAge),
  ]
  for (const { key } of young) left.push([key, 'it is too young to be sure'])
  for (let at = 0; at < old.length; at += 1_000)
    await tools.store.remove(
      bucketName(tools.bucketPrefix, 'processed'),
      old.slice(at, at + 1_000).map(({ key }) => key),
    )
  return old.length
}

export async function repair(findings: readonly Finding[], tools: RepairTools): Promise<Repaired> {
  const codec = openCodec(openRegistry(tools.registryUrl))
  const left: [string, string][] = []
  const written = await writeAgain(
    findings.flatMap(({ record }) => record ?? []),
    codec,
    tools,
    left,
  )
  const still = async (role: 'raw' | 'processed') => {
    const objects = findings.flatMap(({ object }) => (object?.role === role ? object : []))
    const keys = new Set(
      await unnamed(
        tools.pool,
        role,
        objects.map(({ key }) => key),
      ),
    )
    return objects.filter(({ key }) => keys.has(key))
  }
  const announced = await announceAgain(
    (await still('raw')).map(({ key }) => key),
    codec,
    tools,
    left,
  )
  const removed = await removeOrphans(await still('processed'), tools, left)
  for (const { kind, what } of findings) if (kind === 'missing' || kind === 'duplicate' || kind === 'unrecorded') left.push([what, `${kind}: nothing can be done about it`])
  return { written, announced, removed, left }
}
