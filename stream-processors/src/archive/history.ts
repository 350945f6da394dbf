/**
 * A range of a topic from wherever it lies: what Kafka still keeps is read there, what it does not from the archive.
 * Each offset once, in order per partition; what lies nowhere is an error, never a silence.
 */

import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Sql } from '@frameloop/kit/postgres'
import { oneByOne, type Range, rangeBatches, readBounds } from '../chain/kafka-bus.ts'
import type { BusRecord } from '../chain/stage.ts'
import { decodeContainer } from './container.ts'

export interface ArchiveFile {
  readonly topic: string
  readonly partition: number
  readonly from_offset: number
  readonly until_offset: number
  readonly bucket: string
  /** Empty: no record lies at these offsets. */
  readonly object_key: string
  readonly sha256: string
}

export interface Reading {
  /** The range, all of it. */
  readonly range: Range
  /** In order; the part of the range before `kafka.from` lies in them. */
  readonly files: readonly ArchiveFile[]
  readonly kafka: Range
}

/** Where each part of a range is read. `kept`: what Kafka has of the partition. Throws `HISTORY_INCOMPLETE`. */
export function planReading(range: Range, kept: { readonly from: number } | undefined, files: readonly ArchiveFile[]): Reading {
  const { topic, partition, from, until } = range
  const low = Math.min(until, Math.max(from, kept?.from ?? until))
  const used = files
    .filter((file) => low > from && file.topic === topic && file.partition === partition && file.until_offset > from && file.from_offset < low)
    .sort((a, b) => a.from_offset - b.from_offset)
  let reached = from
  for (const file of used) {
    if (file.from_offset > reached) break
    reached = Math.max(reached, file.until_offset)
  }
  if (reached < low)
    throw new Fault('HISTORY_INCOMPLETE', `Offsets ${reached} to ${low - 1} of ${topic}/${partition} are neither in Kafka nor in the archive`, { topic, partition })
  return { range, files: used, kafka: { topic, partition, from: low, until } }
}

/** Offsets from `from` (inclusive) to `until`. */
export interface Span {
  readonly from: number
  readonly until: number
}

/** What the files of one partition hold of the offsets before `low` without a gap, and what lies between: nowhere. */
export function spansOf(files: readonly Pick<ArchiveFile, 'from_offset' | 'until_offset'>[], low: number): { readonly held: readonly Span[]; readonly gaps: readonly Span[] } {
  const held: { from: number; until: number }[] = []
  for (const file of [...files].sort((a, b) => a.from_offset - b.from_offset)) {
    const last = held.at(-1)
    const [from, until] = [file.from_offset, Math.min(low, file.until_offset)]
    if (last && from <= last.until) last.until = Math.max(last.until, until)
    else if (until > from) held.push({ from, until })
  }
  const edges = [{ from: 0, until: 0 }, ...held, { from: low, until: low }]
  const gaps = edges.slice(1).flatMap(({ from }, at): Span[] => {
    const reached = edges[at]?.until ?? 0
    return from > reached ? [{ from: reached, until: from }] : []
  })
  return { held, gaps }
}

export interface HistoryTools {
  readonly brokers: string
  readonly sql: Sql
  readonly store: ObjectStore
}

export async function selectArchiveFiles(sql: Sql, topicNames: readonly string[]): Promise<ArchiveFile[]> {
  const { rows } = await sql.query<ArchiveFile>(
    'select topic, partition, from_offset, until_offset, bucket, object_key, sha256 from archive_files where topic = any($1) order by topic, partition, from_offset',
    [topicNames],
  )
  return rows
}

export async function planReadings(ranges: readonly Range[], { brokers, sql }: HistoryTools): Promise<Reading[]> {
  const wanted = ranges.filter(({ from, until }) => until > from)
  const topicNames = [...new Set(wanted.map(({ topic }) => topic))]
  const kept = await readBounds(brokers, 'frameloop.history', topicNames)
  const files = await selectArchiveFiles(sql, topicNames)
  return wanted.map((range) =>
    planReading(
      range,
      kept.find(({ topic, partition }) => topic === range.topic && partition === range.partition),
      files,
    ),
  )
}

export async function* historyBatches(readings: readonly Reading[], tools: HistoryTools, name: string, signal: AbortSignal): AsyncGenerator<readonly BusRecord[]> {
  for (const { range, files, kafka } of readings) {
    for (const file of files) {
      if (file.object_key === '') continue
      signal.throwIfAborted()
      const bytes = await tools.store.get(file.bucket, file.object_key, signal)
      if (sha256Hex(bytes) !== file.sha256)
        throw new Fault('OBJECT_CONFLICT', `${file.object_key} is not what was archived: it hashes to ${sha256Hex(bytes).slice(0, 12)}…`, { key: file.object_key })
      const records = await decodeContainer({ topic: range.topic, partition: range.partition, from: file.from_offset }, bytes)
      yield records.filter(({ offset }) => offset >= range.from && offset < kafka.from)
    }
  }
  yield* rangeBatches(
    tools.brokers,
    name,
    readings.map(({ kafka }) => kafka),
    signal,
  )
}

export function readHistory(readings: readonly Reading[], tools: HistoryTools, name: string, signal: AbortSignal): AsyncGenerator<BusRecord> {
  return oneByOne(historyBatches(readings, tools, name, signal))
}
