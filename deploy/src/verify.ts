/**
 * `frameloop verify`: object store, topics and rows against each other.
 *
 *   missing     a row names an object that is not there, or one of another size
 *   duplicate   a frame came out of a stage twice
 *   orphan      an object that no row names: announced and lost by a broker, or never announced
 *   unrecorded  a row that no record of a topic stands behind
 *
 * Y1  What may still be on its way is no finding: objects and rows of the last minutes are left out.
 * Y2  Repair announces again what lies in the raw bucket with its identity on it; validate knows what it has seen. Nothing is deleted.
 */
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { isUuid } from '@frameloop/schemas/ids'
import { type BucketRole, bucketName, contentTypeOf } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'

export interface Finding {
  readonly kind: 'missing' | 'duplicate' | 'orphan' | 'unrecorded'
  readonly what: string
  readonly detail: string
  /** Of an orphan in the raw bucket. */
  readonly key?: string
}

export interface Verified {
  readonly media: number
  readonly objects: number
  readonly findings: readonly Finding[]
}

export interface VerifyTools {
  readonly pool: Pool
  readonly store: ObjectStore
  readonly bucketPrefix: string
  readonly say: (text: string) => void
}

/** What is younger may still be on its way (Y1). */
export const settleTime: Ms = 120_000

interface NamedObject {
  readonly key: string
  readonly bytes: number | null
  readonly owner: string
}

/** Objects that rows name, by key. */
async function namedObjects(pool: Pool, role: BucketRole, from: Date, to: Date): Promise<Map<string, NamedObject>> {
  const text =
    role === 'raw'
      ? "select object_key as key, object_bytes as bytes, 'media ' || media_id as owner from media where object_key <> '' and captured_at >= $1 and captured_at < $2"
      : `select object_key as key, null::bigint as bytes, 'features of frame ' || frame_id as owner from features where frame_at >= $1 and frame_at < $2
         union all select object_key, null, 'frame ' || frame_id from frames where object_key like 'frames/%' and frame_at >= $1 and frame_at < $2`
  const { rows } = await pool.query<NamedObject>(text, [from, to])
  return new Map(rows.map((row) => [row.key, row]))
}

/** The hour that stands in a key, or undefined. */
function hourOf(key: string): EpochMs | undefined {
  const found = /\/(\d{4})\/(\d\d)\/(\d\d)\/(\d\d)\//.exec(key)
  return found ? Date.UTC(Number(found[1]), Number(found[2]) - 1, Number(found[3]), Number(found[4])) : undefined
}

async function unnamed(pool: Pool, role: BucketRole, keys: readonly string[]): Promise<string[]> {
  const tables = role === 'raw' ? ['media'] : ['features', 'frames']
  const known = new Set<string>()
  for (const table of tables) {
    const { rows } = await pool.query<{ object_key: string }>(`select object_key from ${table} where object_key = any($1)`, [keys])
    for (const { object_key } of rows) known.add(object_key)
  }
  return keys.filter((key) => !known.has(key))
}

async function checkObjects(role: 'raw' | 'processed', from: Date, to: Date, tools: VerifyTools): Promise<{ readonly objects: number; readonly findings: Finding[] }> {
  const { pool, store, say } = tools
  const bucket = bucketName(tools.bucketPrefix, role)
  const named = await namedObjects(pool, role, from, to)
  const findings: Finding[] = []
  let objects = 0
  let strangers: string[] = []
  const askAbout = async (): Promise<void> => {
    for (const key of await unnamed(pool, role, strangers))
      findings.push({ kind: 'orphan', what: `s3://${bucket}/${key}`, detail: 'no row names it', ...(role === 'raw' ? { key } : {}) })
    strangers = []
  }
  for await (const { key, bytes, modifiedAt } of store.list(bucket, '')) {
    objects += 1
    if (objects % 50_000 === 0) say(`${bucket}: ${objects} objects …`)
    const owner = named.get(key)
    if (owner) {
      named.delete(key)
      if (owner.bytes !== null && owner.bytes !== bytes)
        findings.push({ kind: 'missing', what: `s3://${bucket}/${key}`, detail: `it holds ${bytes} bytes, ${owner.owner} says ${owner.bytes}` })
      continue
    }
    // the key says when it was captured, to the hour; one that does not is as old as its object
    const hour = hourOf(key)
    if ((hour === undefined ? modifiedAt : hour + 3_600_000 - 1) < from.getTime() || (hour ?? modifiedAt) >= to.getTime()) continue
    strangers.push(key)
    if (strangers.length >= 1_000) await askAbout()
  }
  await askAbout()
  for (const { key, owner } of named.values()) findings.push({ kind: 'missing', what: `s3://${bucket}/${key}`, detail: `${owner} names it and it is not there` })
  return { objects, findings }
}

async function checkRecords(pool: Pool, from: Date, to: Date): Promise<Finding[]> {
  const { rows } = await pool.query<{ kind: Finding['kind']; what: string; detail: string }>(
    `select 'duplicate' as kind, 'frame ' || subject_id as what, count(*) || ' records on features.prepared for ' || max(f.n) || ' preprocessings' as detail
       from hops h join (select frame_id, count(*) as n from features where frame_at >= $1 and frame_at < $2 group by frame_id) f on f.frame_id = h.subject_id
       where h.topic = 'features.prepared' group by subject_id having count(*) > max(f.n)
     union all
     select 'duplicate', 'frame ' || subject_id, count(*) || ' records on frames.extracted'
       from hops h join frames f on f.frame_id = h.subject_id where h.topic = 'frames.extracted' and f.frame_at >= $1 and f.frame_at < $2 group by subject_id having count(*) > 1
     union all
     select 'duplicate', 'media ' || subject_id, count(*) || ' records on media.validated'
       from hops h join media m on m.media_id = h.subject_id where h.topic = 'media.validated' and m.captured_at >= $1 and m.captured_at < $2 group by subject_id having count(*) > 1
     union all
     select 'unrecorded', 'media ' || m.media_id, 'camera ' || camera_id || ' seq ' || seq || ': no record of any topic stands behind it'
       from media m where m.captured_at >= $1 and m.captured_at < $2 and not exists (select 1 from hops h where h.subject_id = m.media_id)
     union all
     select 'unrecorded', 'features of frame ' || f.frame_id, 'no record of features.prepared stands behind it'
       from features f where f.frame_at >= $1 and f.frame_at < $2 and not exists (select 1 from hops h where h.subject_id = f.frame_id and h.topic = 'features.prepared')`,
    [from, to],
  )
  return rows
}

/** Everything captured in [from, to). */
export async function verify(from: Date, to: Date, tools: VerifyTools): Promise<Verified> {
  const raw = await checkObjects('raw', from, to, tools)
  const processed = await checkObjects('processed', from, to, tools)
  const records = await checkRecords(tools.pool, from, to)
  const { rows } = await tools.pool.query<{ n: number }>('select count(*)::int as n from media where captured_at >= $1 and captured_at < $2', [from, to])
  return { media: rows[0]?.n ?? 0, objects: raw.objects + processed.objects, findings: [...raw.findings, ...processed.findings, ...records] }
}

export function showVerified({ media, objects, findings }: Verified): string {
  const counts = (['missing', 'duplicate', 'orphan', 'unrecorded'] as const).map((kind) => `${findings.filter((finding) => finding.kind === kind).length} ${kind}`)
  return [
    ...findings.slice(0, 50).map(({ kind, what, detail }) => `${kind.padEnd(10)} ${what}: ${detail}`),
    ...(findings.length > 50 ? [`… and ${findings.length - 50} more`] : []),
    `${media} media and ${objects} objects looked at: ${findings.length === 0 ? 'clean' : counts.join(', ')}`,
  ].join('\n')
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

/** Y2. Returns how many were announced again, and the keys that carry no identity. */
export async function repair(
  findings: readonly Finding[],
  tools: VerifyTools & { readonly brokers: string; readonly registryUrl: string },
): Promise<{ readonly announced: number; readonly nameless: readonly string[] }> {
  const bucket = bucketName(tools.bucketPrefix, 'raw')
  const keys = findings.flatMap(({ kind, key }) => (kind === 'orphan' && key ? [key] : []))
  if (keys.length === 0) return { announced: 0, nameless: [] }
  const producer = openKafka(tools.brokers, 'verify', openLog('verify', 'error')).producer()
  const codec = openCodec(openRegistry(tools.registryUrl))
  const nameless: string[] = []
  let announced = 0
  await producer.connect()
  try {
    for (const key of keys) {
      const about = await tools.store.head(bucket, key)
      const event = about ? announcementOf({ bucket, key }, about) : undefined
      if (!event) {
        nameless.push(key)
        continue
      }
      const record = await recordOf(codec, topics.mediaBackfill, event, {
        key: event.cameraId,
        id: event.mediaId,
        time: event.capturedAt,
        source: 'verify',
        traceparent: newTraceparent(),
      })
      await producer.send({ topic: topics.mediaBackfill.name, acks: -1, messages: [record] })
      announced += 1
    }
  } finally {
    await producer.disconnect()
  }
  return { announced, nameless }
}
