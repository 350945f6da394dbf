/** `frameloop replay`, `replay list`, `replay remove`: a past range again on a side topic, with progress, Ctrl-C and resuming. */
import { randomBytes } from 'node:crypto'
import { constants, setPriority } from 'node:os'
import { listOf } from '@frameloop/kit/config'
import { Fault } from '@frameloop/kit/fault'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import { showMs } from '@frameloop/kit/units'
import { openCodec } from '@frameloop/schemas/codec'
import { bucketName, manifestKey, replayPrefix } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { planReadings } from '@frameloop/stream-processors/archive/history'
import { type Range, readBounds } from '@frameloop/stream-processors/chain/kafka-bus'
import { openPixelThreads } from '@frameloop/stream-processors/pixels/pixel-threads'
import {
  belongs,
  freezeRanges,
  type Manifest,
  manifestOf,
  type Replay,
  type ReplayRequest,
  type ReplayTools,
  runReplay,
  sourcesOf,
  storeManifest,
} from '@frameloop/stream-processors/replay/replay'
import { isCatalogBehind } from './catalog-lag.ts'
import { progressOf } from './progress.ts'
import { parsePreprocessing } from './tasks.ts'
import { timeOf } from './times.ts'

export interface ReplayFlags {
  readonly from?: string
  readonly to?: string
  readonly topic: string
  readonly cameras?: string
  readonly task?: string
  readonly speed: string
  readonly into?: string
  readonly preprocessing?: string
  readonly resume?: string
  readonly json?: boolean
}

export interface ReplayStack {
  readonly pool: Pool
  readonly store: ObjectStore
  readonly brokers: string
  readonly registryUrl: string
  readonly bucketPrefix: string
  readonly requestedBy: string
  readonly print: (text: string) => void
  readonly signal: AbortSignal
}

/** A side topic that was forgotten removes its records by itself. */
const sideRetention = 86_400_000

function requestOf(flags: ReplayFlags): ReplayRequest {
  const from = timeOf(flags.from, '--from')
  const to = timeOf(flags.to, '--to') ?? new Date()
  if (flags.task !== undefined && flags.topic !== topics.featuresPrepared.name)
    throw new Fault('REQUEST_INVALID', `--task says which prepared frames are copied, and ${flags.topic} holds none`)
  if (!from) throw new Fault('REQUEST_INVALID', 'Say where the range begins: --from 2026-11-24T10:00:00Z')
  const speed = flags.speed === 'max' ? null : Number(flags.speed)
  if (speed !== null && !(speed > 0)) throw new Fault('REQUEST_INVALID', `--speed ${flags.speed}: max, or how many times real time, for example 10`)
  return {
    topic: flags.topic,
    from: from.getTime(),
    to: to.getTime(),
    cameras: flags.cameras === undefined ? null : listOf(flags.cameras),
    task: flags.task ?? null,
    speed,
    preprocessing: flags.preprocessing === undefined ? null : parsePreprocessing(flags.preprocessing),
  }
}

/** Which offsets lie in the range the catalog says: while it has not read some of them, it would leave them out. Throws `CATALOG_BEHIND`. */
async function needCatalog(request: ReplayRequest, stack: Pick<ReplayStack, 'pool' | 'store' | 'brokers' | 'signal'>): Promise<void> {
  if (await isCatalogBehind(sourcesOf(request), stack, stack.signal, (record) => belongs(record, request)))
    throw new Fault('CATALOG_BEHIND', 'Records of the range are not in the catalog yet')
}

interface ReplayRow {
  readonly replay_id: string
  readonly topic: string
  readonly into_topic: string
  readonly request: ReplayRequest
  readonly ranges: readonly Range[]
  readonly state: string
  readonly records: number
  readonly digest: string
  readonly created_at: Date
}

async function selectReplay(pool: Pool, id: string): Promise<ReplayRow> {
  const { rows } = await pool.query<ReplayRow>('select * from replays where replay_id = $1', [id])
  if (!rows[0]) throw new Fault('REPLAY_UNKNOWN', `There is no replay ${id}`, { id })
  return rows[0]
}

/** A new one, or the one to go on with. */
async function openReplay(flags: ReplayFlags, stack: ReplayStack): Promise<Replay> {
  const { pool, brokers, requestedBy } = stack
  if (flags.resume !== undefined) {
    const row = await selectReplay(pool, flags.resume)
    if (row.state === 'removed' || row.state === 'done') throw new Fault('REQUEST_INVALID', `Replay ${row.replay_id} is ${row.state}; there is nothing to go on with`)
    await pool.query("update replays set state = 'running' where replay_id = $1", [row.replay_id])
    return { id: row.replay_id, into: row.into_topic, request: row.request, ranges: row.ranges }
  }
  const request = requestOf(flags)
  await needCatalog(request, stack)
  const ranges = await freezeRanges(pool, request)
  const id = randomBytes(4).toString('hex')
  const into = `${request.topic}.replay.${flags.into ?? id}`
  if (!/^[A-Za-z0-9._-]{1,200}$/.test(into)) throw new Fault('REQUEST_INVALID', `--into ${flags.into}: letters, digits, dots, dashes and underscores only`)
  const partitions = (await readBounds(brokers, 'frameloop.replay', [ranges[0]?.topic ?? ''])).length
  const admin = openKafka(brokers, 'replay', openLog('replay', 'error')).admin()
  await admin.connect()
  try {
    const configEntries = [
      { name: 'retention.ms', value: String(sideRetention) },
      { name: 'max.message.bytes', value: '8000000' },
    ]
    const isNew = await createTopics(admin, [{ topic: into, numPartitions: partitions, configEntries }])
    if (!isNew) throw new Fault('REQUEST_INVALID', `The topic ${into} is there already; choose another name with --into, or remove its replay`)
  } finally {
    await admin.disconnect()
  }
  await pool.query('insert into replays (replay_id, topic, into_topic, request, ranges, requested_by) values ($1, $2, $3, $4, $5, $6)', [
    id,
    request.topic,
    into,
    request,
    JSON.stringify(ranges),
    requestedBy,
  ])
  return { id, into, request, ranges }
}

/** Runs to the end, or to Ctrl-C. Returns whether it came to the end. */
export async function replay(flags: ReplayFlags, stack: ReplayStack): Promise<boolean> {
  const { pool, brokers, store, bucketPrefix, signal, print } = stack
  const open = await openReplay(flags, stack)
  const say = flags.json ? (text: string): void => void process.stderr.write(`${text}\n`) : print
  const total = open.ranges.reduce((sum, { from, until }) => sum + until - from, 0)
  say(`replay ${open.id}: ${open.ranges.length} partitions of ${open.ranges[0]?.topic}, ${total} offsets → ${open.into}`)
  const progress = progressOf()
  const onProgress: ReplayTools['onProgress'] = (done, all, copied) => progress(done, all, `${copied} records`)
  const log = openLog('replay', 'error')
  // what is live goes first, on this machine too
  setPriority(constants.priority.PRIORITY_LOW)
  const pixels = openPixelThreads()
  const tools: ReplayTools = { pool, brokers, store, codec: openCodec(openRegistry(stack.registryUrl)), bucketPrefix, log, pixels, onProgress }
  const since = Date.now()
  let isDone = false
  try {
    isDone = await runReplay(open, tools, signal)
  } finally {
    progress.end()
    await pixels.close()
    if (!isDone) {
      await pool.query("update replays set state = 'stopped' where replay_id = $1", [open.id])
      say(`stopped. Go on with \`npx frameloop replay --resume ${open.id}\`, or drop it with \`npx frameloop replay remove ${open.id}\`.`)
    }
  }
  if (!isDone) return false
  const took = Date.now() - since
  const manifest: Manifest = await manifestOf(open, await planReadings(open.ranges, { brokers, sql: pool, store }), brokers, AbortSignal.timeout(600_000))
  await storeManifest(manifest, tools)
  await pool.query("update replays set state = 'done', records = $2, digest = $3, ended_at = now() where replay_id = $1", [open.id, manifest.records, manifest.digest])
  if (flags.json) print(JSON.stringify({ id: open.id, into: open.into, records: manifest.records, digest: manifest.digest, ms: took }))
  else {
    print(`${manifest.records} records on ${open.into} in ${showMs(took)}; manifest ${manifest.digest}`)
    print(`It stands in s3://${bucketName(bucketPrefix, 'datasets')}/${manifestKey(manifest.digest)}. After use: npx frameloop replay remove ${open.id}`)
  }
  return true
}

export async function listReplays(pool: Pool): Promise<ReplayRow[]> {
  const { rows } = await pool.query<ReplayRow>('select * from replays order by created_at')
  return rows
}

export function showReplays(replays: readonly ReplayRow[]): string {
  if (replays.length === 0) return 'There has been no replay.'
  return replays
    .map(
      ({ replay_id, into_topic, request, state, records, digest, created_at }) =>
        `${replay_id}  ${state.padEnd(8)} ${into_topic}  ${new Date(request.from).toISOString()} to ${new Date(request.to).toISOString()}  ${records} records${digest ? `, manifest ${digest.slice(0, 12)}…` : ''}  ${created_at.toISOString()}`,
    )
    .join('\n')
}

/** The side topic and what was prepared for it go; the manifest stays. */
export async function removeReplay(
  id: string,
  { pool, brokers, store, bucketPrefix }: Pick<ReplayStack, 'pool' | 'brokers' | 'store' | 'bucketPrefix'>,
): Promise<{ readonly objects: number }> {
  const row = await selectReplay(pool, id)
  const admin = openKafka(brokers, 'replay', openLog('replay', 'error')).admin()
  await admin.connect()
  try {
    if ((await admin.listTopics()).includes(row.into_topic)) await admin.deleteTopics({ topics: [row.into_topic] })
  } finally {
    await admin.disconnect()
  }
  const bucket = bucketName(bucketPrefix, 'processed')
  let objects = 0
  let keys: string[] = []
  for await (const { key } of store.list(bucket, replayPrefix(id))) {
    keys.push(key)
    if (keys.length < 500) continue
    await store.remove(bucket, keys)
    objects += keys.length
    keys = []
  }
  if (keys.length > 0) await store.remove(bucket, keys)
  await pool.query("update replays set state = 'removed', ended_at = coalesce(ended_at, now()) where replay_id = $1", [id])
  return { objects: objects + keys.length }
}
