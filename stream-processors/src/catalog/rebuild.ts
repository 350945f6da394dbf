/**
 * The catalog once more from the archive and the topics: in place, to bring back rows that were lost, or beside it, to
 * prove that the rows are what the records say. Rows commute and may be written again (C3), so nothing is stopped for it.
 */
import { Fault, toError } from '@frameloop/kit/fault'
import { inTransaction, type Pool } from '@frameloop/kit/postgres'
import type { EpochMs } from '@frameloop/kit/units'
import type { Codec } from '@frameloop/schemas/codec'
import { cataloguedTopics } from '@frameloop/schemas/topics'
import { type HistoryTools, planReading, type Reading, readHistory, selectArchiveFiles, spansOf } from '../archive/history.ts'
import { type Range, readBounds } from '../chain/kafka-bus.ts'
import type { BusRecord } from '../chain/stage.ts'
import { isRefusal, writeRows } from './catalog.ts'
import { addRows, daysOf, noRows, type Rows } from './rows.ts'
import { ensureDays, selectOffsets } from './sql.ts'

const batchLimit = 500
/** Each takes a fraction of the time of the one before: what is left comes while the last one is compared. */
const catchUpPasses = 3

/** Tables that records alone fill, with the columns that they fill; times of recording are not among them. */
const tables = {
  media: {
    key: 'media_id',
    columns:
      'media_id, site_id, camera_id, agent_id, epoch, seq, source, kind, lane, captured_at, media_offset_us, status_rank, reason, bucket, object_key, object_sha256, object_bytes, format, width, height, frame_count, parameters, trace_id',
    at: 'captured_at',
  },
  frames: {
    key: 'frame_id',
    columns: 'frame_id, media_id, camera_id, epoch, seq, frame_at, media_offset_us, frame_index, status_rank, reason, bucket, object_key, object_sha256, width, height, parameters',
    at: 'frame_at',
  },
  features: {
    key: 'frame_id',
    columns:
      'frame_id, preprocessing, reference, camera_id, frame_at, media_offset_us, bucket, object_key, object_sha256, picture_sha256, zones, parameters, topic, partition, record_offset, prepared_at',
    at: 'frame_at',
  },
  predictions: {
    key: 'frame_id',
    columns:
      'frame_id, zone, task, model_version, camera_id, frame_at, media_offset_us, answer, confidence, scores, model_name, model_digest, preprocessing, captured_at, answered_at, predict_ms, alias',
    at: 'frame_at',
  },
  hops: { key: 'subject_id', columns: 'topic, partition, record_offset, subject_id, at', at: 'at' },
  dead_letters: {
    key: 'subject_id',
    columns: 'topic, partition, record_offset, stage, reason, message, origin_topic, origin_partition, origin_offset, camera_id, subject_id, at',
    at: 'at',
  },
  losses: { key: 'camera_id', columns: 'camera_id, epoch, seq_from, seq_to, agent_id, reason, lost_at', at: 'lost_at' },
} as const

export type RebuiltTable = keyof typeof tables
export const rebuiltTables = Object.keys(tables) as readonly RebuiltTable[]

export interface RebuildTools extends HistoryTools {
  readonly pool: Pool
  readonly codec: Codec
  readonly onProgress: (done: number, total: number) => void
}

export interface Rebuilt {
  readonly records: number
  /** Offsets that lie neither in Kafka nor in the archive. */
  readonly gone: readonly Range[]
}

interface Replayed {
  /** Where each partition was read to before; it goes on there. */
  readonly reached: Map<string, number>
  /** Only what lies behind the last gap of a partition: what lies before it cannot be told from what is missing. */
  readonly isComparing: boolean
}

/** As far as the catalog has read by now. */
async function historyUntilNow(tools: RebuildTools, { reached, isComparing }: Replayed): Promise<{ readonly readings: readonly Reading[]; readonly gone: readonly Range[] }> {
  const offsets = await selectOffsets(tools.pool)
  const kept = await readBounds(tools.brokers, 'frameloop.rebuild', cataloguedTopics)
  const files = await selectArchiveFiles(tools.sql, cataloguedTopics)
  const readings: Reading[] = []
  const gone: Range[] = []
  for (const { topic, partition, from: low } of kept) {
    const key = `${topic} ${partition}`
    const [from, until] = [reached.get(key), offsets.get(key) ?? 0]
    reached.set(key, until)
    if (from !== undefined) {
      if (until > from) readings.push(planReading({ topic, partition, from, until }, { from: low }, files))
      continue
    }
    if (until === 0) continue
    const own = files.filter((file) => file.topic === topic && file.partition === partition)
    const { held, gaps } = spansOf(own, Math.min(low, until))
    const whole = isComparing ? (gaps.at(-1)?.until ?? 0) : 0
    for (const span of held.filter(({ from: begins }) => begins >= whole)) readings.push(planReading({ topic, partition, ...span }, { from: span.until }, own))
    for (const gap of gaps) gone.push({ topic, partition, ...gap })
    if (until > low) readings.push(planReading({ topic, partition, from: low, until }, { from: low }, []))
  }
  return { readings, gone }
}

/** What cannot be read has no row, now as then. */
export async function rowsOf(records: readonly BusRecord[], codec: Codec): Promise<{ readonly rows: Rows; readonly unreadable: readonly BusRecord[] }> {
  const rows = noRows()
  const unreadable: BusRecord[] = []
  for (const record of records) {
    try {
      await addRows(rows, record, codec)
    } catch (thrown) {
      if (thrown instanceof Fault && thrown.code === 'REGISTRY_UNAVAILABLE') throw thrown
      unreadable.push(record)
    }
  }
  return { rows, unreadable }
}

async function writeInPlace(pool: Pool, rows: Rows): Promise<void> {
  await ensureDays(pool, daysOf(rows, Date.now()))
  await inTransaction(pool, (client) => writeRows(client, rows))
}

/** Writes the rows of some records once more. Returns those that cannot be read. */
export async function writeRowsOf(records: readonly BusRecord[], pool: Pool, codec: Codec): Promise<readonly BusRecord[]> {
  const { rows, unreadable } = await rowsOf(records, codec)
  await writeInPlace(pool, rows)
  return unreadable
}

/** Writes every record's rows through `write`. */
async function replayAll(tools: RebuildTools, write: (rows: Rows) => Promise<void>, signal: AbortSignal, replayed: Replayed): Promise<Rebuilt> {
  const { readings, gone } = await historyUntilNow(tools, replayed)
  const total = readings.reduce((sum, { range }) => sum + range.until - range.from, 0)
  let records = 0
  let batch: BusRecord[] = []
  const flush = async (): Promise<void> => {
    try {
      await write((await rowsOf(batch, tools.codec)).rows)
    } catch (thrown) {
      if (!isRefusal(thrown)) throw thrown
      // as the catalog does: what is refused has no row, the others have theirs
      for (const record of batch)
        await write((await rowsOf([record], tools.codec)).rows).catch((refused: unknown) => {
          if (!isRefusal(refused)) throw refused
        })
    }
    records += batch.length
    batch = []
    tools.onProgress(Math.min(records, total), total)
  }
  for await (const record of readHistory(readings, tools, 'frameloop.rebuild', signal)) {
    batch.push(record)
    if (batch.length >= batchLimit) await flush()
  }
  await flush()
  tools.onProgress(total, total)
  return { records, gone }
}

/** In place: rows that are missing come back, the others stay as they are. */
export function rebuildInPlace(tools: RebuildTools, signal: AbortSignal): Promise<Rebuilt> {
  return replayAll(tools, (rows) => writeInPlace(tools.pool, rows), signal, { reached: new Map(), isComparing: false })
}

export interface Comparison extends Rebuilt {
  readonly tables: readonly { readonly table: RebuiltTable; readonly rows: number; readonly missing: number; readonly extra: number; readonly examples: readonly string[] }[]
}

/** Runs `act` with a catalog of its own, empty, in a schema that is dropped afterwards. `write` puts rows there. */
export async function withCatalogBeside<Result>(pool: Pool, schema: string, act: (write: (rows: Rows) => Promise<void>) => Promise<Result>): Promise<Result> {
  await pool.query(`drop schema if exists ${schema} cascade`)
  await pool.query(`create schema ${schema}`)
  try {
    // also those that records fill among others: what is written or removed there is nobody's in use
    for (const table of [...Object.keys(tables), 'captures', 'ledger']) await pool.query(`create table ${schema}.${table} (like public.${table} including all)`)
    return await act((rows) =>
      inTransaction(pool, async (client) => {
        await client.query(`set local search_path to ${schema}, public`)
        await writeRows(client, rows)
      }),
    )
  } finally {
    await pool.query(`drop schema if exists ${schema} cascade`).catch((thrown: unknown) => {
      throw new Fault('DATABASE_UNAVAILABLE', `The schema ${schema} could not be dropped: ${toError(thrown).message}`, {}, thrown)
    })
  }
}

/** Keys of rows that `one` has and `other` lacks, or has otherwise. */
export async function differingRows(pool: Pool, table: RebuiltTable, one: string, other: string, where = 'true', values: readonly unknown[] = []): Promise<string[]> {
  const { key, columns } = tables[table]
  const side = (schema: string): string => `select ${columns} from ${schema}.${table} where ${where}`
  const { rows } = await pool.query<{ key: string | null }>(`select d.${key}::text as key from (${side(one)} except ${side(other)}) d`, [...values])
  return rows.map((row) => String(row.key))
}

/** Beside the catalog, compared up to `before` (event time, for some tables the broker's). */
export function compareRebuilt(tools: RebuildTools, before: EpochMs, signal: AbortSignal): Promise<Comparison> {
  const { pool } = tools
  const schema = 'catalog_rebuilt'
  return withCatalogBeside(pool, schema, async (write) => {
    const replayed = { reached: new Map<string, number>(), isComparing: true }
    const rebuilt = await replayAll(tools, write, signal, replayed)
    // what was catalogued meanwhile may be about times before `before` as well: an agent's backlog
    const catchUp = { ...tools, onProgress: () => {} }
    let { records } = rebuilt
    for (let pass = 0; pass < catchUpPasses; pass += 1) records += (await replayAll(catchUp, write, signal, replayed)).records
    const found: Comparison['tables'][number][] = []
    for (const [table, { at }] of Object.entries(tables) as [RebuiltTable, (typeof tables)[RebuiltTable]][]) {
      // what lies neither in Kafka nor in the archive cannot be compared
      const from = rebuilt.gone.length > 0 ? `${at} >= coalesce((select min(${at}) from ${schema}.${table}), $1) and ` : ''
      const where = `${from}${at} < $1`
      const [extra, missing] = [
        await differingRows(pool, table, 'public', schema, where, [new Date(before)]),
        await differingRows(pool, table, schema, 'public', where, [new Date(before)]),
      ]
      const { rows } = await pool.query<{ n: number }>(`select count(*)::int as n from ${schema}.${table} where ${at} < $1`, [new Date(before)])
      found.push({ table, rows: rows[0]?.n ?? 0, missing: missing.length, extra: extra.length, examples: [...new Set([...missing, ...extra])].slice(0, 5) })
    }
    return { ...rebuilt, records, tables: found }
  })
}
