/** Whether the catalog has read what is there: whoever asks it about topics must know. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { Ms } from '@frameloop/kit/units'
import { planReadings, readHistory } from '@frameloop/stream-processors/archive/history'
import { selectOffsets } from '@frameloop/stream-processors/catalog/sql'
import { readBounds } from '@frameloop/stream-processors/chain/kafka-bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'

/** How long it is given to read what was there when the question came. */
const patience: Ms = 30_000

/**
 * Whether it has not read all records of these topics that are there now, after it was given time to; of those that are
 * `wanted`. What the broker has deleted it need not read any more.
 */
export async function isCatalogBehind(
  topicNames: readonly string[],
  { pool, store, brokers }: { readonly pool: Pool; readonly store: ObjectStore; readonly brokers: string },
  signal: AbortSignal,
  isWanted: (record: BusRecord) => boolean = () => true,
): Promise<boolean> {
  const bounds = await readBounds(brokers, 'frameloop.catalog-lag', topicNames)
  const history = { brokers, sql: pool, store }
  const deadline = Date.now() + patience
  /** Stops at the first: the last offsets of a partition are markers mostly, which nobody reads. */
  const hasUnread = async (): Promise<boolean> => {
    const read = await selectOffsets(pool)
    const ranges = bounds.map((bound) => ({ ...bound, from: Math.max(bound.from, read.get(`${bound.topic} ${bound.partition}`) ?? 0) })).filter((range) => range.from < range.until)
    for await (const record of readHistory(await planReadings(ranges, history), history, 'frameloop.catalog-lag', signal)) {
      if (isWanted(record)) return true
      // so much of it that nobody knows in time
      if (Date.now() >= deadline) return true
    }
    return false
  }
  while (await hasUnread()) {
    if (Date.now() >= deadline) return true
    await sleep(500, undefined, { signal })
  }
  return false
}
