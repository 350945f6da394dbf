/**
 * Every topic → PostgreSQL.
 * C1  A batch's rows and the offsets behind it are one database transaction: nothing twice, nothing skipped.
 * C2  Offsets move by compare-and-set: two catalogs at once cannot both write a batch.
 * C3  Rows commute: whatever order topics are read in, the rows come out equal.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '@frameloop/kit/fault'
import { stageMetrics } from '@frameloop/kit/metrics'
import { inTransaction, isDatabaseTransient, type Pool, type Sql } from '@frameloop/kit/postgres'
import { backoffPause } from '@frameloop/kit/retry'
import { cataloguedTopics } from '@frameloop/schemas/topics'
import { nextOffsets, type StageTools } from '../chain/run-stage.ts'
import type { BusRecord } from '../chain/stage.ts'
import { addRows, daysOf, mergeFrames, mergeMedia, noRows, type Rows } from './rows.ts'
import {
  ensureDays,
  insertDeadLetters,
  insertHops,
  insertLosses,
  moveOffsets,
  selectOffsets,
  updateMediaExtracted,
  upsertCaptures,
  upsertFeatures,
  upsertFrames,
  upsertMedia,
  upsertPredictions,
} from './sql.ts'

const batchLimit = 500
const name = 'catalog'

function lastPerKey(rows: Rows['captures']): Rows['captures'] {
  return [...new Map(rows.map((row) => [`${row['camera_id']} ${row['epoch']}`, row])).values()]
}

/** Statements that may be repeated, in any order of topics (C3). */
export async function writeRows(sql: Sql, rows: Rows): Promise<void> {
  if (rows.media.length > 0) await upsertMedia(sql, mergeMedia(rows.media))
  if (rows.mediaExtracted.length > 0) await updateMediaExtracted(sql, rows.mediaExtracted)
  if (rows.frames.length > 0) await upsertFrames(sql, mergeFrames(rows.frames))
  if (rows.features.length > 0) await upsertFeatures(sql, rows.features)
  if (rows.predictions.length > 0) await upsertPredictions(sql, rows.predictions)
  if (rows.deadLetters.length > 0) await insertDeadLetters(sql, rows.deadLetters)
  if (rows.losses.length > 0) await insertLosses(sql, rows.losses)
  if (rows.captures.length > 0) await upsertCaptures(sql, lastPerKey(rows.captures))
  if (rows.hops.length > 0) await insertHops(sql, rows.hops)
}

/**
 * PostgreSQL refuses some row, whenever it is asked: the others must not wait for it. Only what it says of values counts as that
 * (PostgreSQL manual, appendix A: data exception, integrity constraint, one row twice, a value larger than an index takes): a
 * table that is missing, a right or a lock say nothing about a record.
 */
export function isRefusal(thrown: unknown): boolean {
  return /^(21|22|23|54)[0-9A-Z]{3}$/.test(String((thrown as { code?: unknown }).code))
}

/** What somebody can mend, or passes by itself: whatever else the database says, and the registry being away. */
const mayPass = (thrown: unknown): boolean =>
  isDatabaseTransient(thrown) || /^[0-9A-Z]{5}$/.test(String((thrown as { code?: unknown }).code)) || (thrown instanceof Fault && thrown.code === 'REGISTRY_UNAVAILABLE')

export function startCatalog(pool: Pool, tools: StageTools): { readonly run: (signal: AbortSignal) => Promise<void>; readonly notReady: () => string | undefined } {
  const { log } = tools
  const metrics = stageMetrics(tools.metrics)
  let state = 'starting'
  const knownDays = new Set<string>()

  const write = async (rows: Rows, records: readonly BusRecord[], positions: Map<string, number>): Promise<void> => {
    const moves = nextOffsets(records).map(({ topic, partition, offset }) => ({ topic, partition, from: positions.get(`${topic} ${partition}`) ?? 0, to: offset }))
    const days = daysOf(rows, Date.now()).filter((day) => !knownDays.has(day))
    if (days.length > 0) {
      await ensureDays(pool, days)
      for (const day of days) knownDays.add(day)
    }
    await inTransaction(pool, async (client) => {
      if (!(await moveOffsets(client, moves))) throw new Fault('INTERNAL', 'Another catalog moved the offsets')
      await writeRows(client, rows)
    })
    for (const { topic, partition, to } of moves) positions.set(`${topic} ${partition}`, to)
  }

  const rowsOf = async (records: readonly BusRecord[]): Promise<Rows> => {
    const rows = noRows()
    for (const record of records) {
      try {
        await addRows(rows, record, tools.codec)
      } catch (thrown) {
        if (thrown instanceof Fault && thrown.code === 'REGISTRY_UNAVAILABLE') throw thrown
        // the stage that reads this topic sends it to the dead letters; here it only has no row
        metrics.rejected.inc({ stage: name, reason: thrown instanceof Fault ? thrown.code : 'INTERNAL' })
      }
    }
    return rows
  }

  /** C4  A record whose rows are refused has none, is counted and named in the log; everything else is written. */
  const writeEach = async (records: readonly BusRecord[], positions: Map<string, number>): Promise<void> => {
    for (const record of records) {
      try {
        await write(await rowsOf([record]), [record], positions)
      } catch (thrown) {
        if (!isRefusal(thrown)) throw thrown
        const { topic, partition, offset } = record
        log.error({ err: thrown, topic, partition, offset }, 'rows refused by the database, record has none')
        metrics.rejected.inc({ stage: name, reason: 'ROW_REFUSED' })
        await write(noRows(), [record], positions)
      }
    }
  }

  const run = async (signal: AbortSignal): Promise<void> => {
    const positions = new Map<string, number>()
    const startAt = async (assigned: readonly { readonly topic: string; readonly partition: number }[]) => {
      const stored = await selectOffsets(pool)
      return assigned.map(({ topic, partition }) => {
        const offset = stored.get(`${topic} ${partition}`) ?? 0
        positions.set(`${topic} ${partition}`, offset)
        return { topic, partition, offset }
      })
    }
    const consumer = await tools.bus.connectConsumer({
      groupId: `frameloop.${name}`,
      instance: `frameloop.${name}.${tools.instance}`,
      topics: cataloguedTopics,
      gather: 250,
      log,
      startAt,
    })
    try {
      let lagAt = 0
      while (!signal.aborted) {
        if (Date.now() - lagAt > 1_000) {
          lagAt = Date.now()
          for (const [topic, lag] of consumer.lag(positions)) metrics.lag.set({ stage: name, topic }, lag)
        }
        const records = await consumer.poll({ lane: 'live', limit: batchLimit, patience: 200 })
        state = consumer.assigned.length > 0 ? '' : 'waiting for partitions'
        if (records.length === 0) continue
        const end = metrics.seconds.startTimer({ stage: name })
        for (let attempt = 1; ; attempt += 1) {
          try {
            const rows = await rowsOf(records)
            try {
              await write(rows, records, positions)
            } catch (thrown) {
              if (!isRefusal(thrown)) throw thrown
              await writeEach(records, positions)
            }
            metrics.received.inc({ stage: name }, records.length)
            for (const [table, list] of Object.entries(rows)) if (list.length > 0) metrics.emitted.inc({ stage: name, topic: table }, list.length)
            state = ''
            break
          } catch (thrown) {
            if (signal.aborted) return
            if (!mayPass(thrown)) throw thrown
            if (attempt === 1) log.warn({ err: thrown }, 'catalog waits for the database')
            state = 'waiting for the database'
            const pause = backoffPause(attempt, { first: 100, cap: 5_000 }, Math.random())
            metrics.blockedSeconds.inc({ stage: name }, pause / 1000)
            await sleep(pause, undefined, { signal })
          }
        }
        end()
      }
    } finally {
      await consumer.close()
    }
  }
  return { run, notReady: () => state || undefined }
}
