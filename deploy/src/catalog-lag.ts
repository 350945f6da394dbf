/** Whether the catalog has read what is there: whoever asks it about topics must know. */
import { setTimeout as sleep } from 'node:timers/promises'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { Ms } from '@frameloop/kit/units'
import { planReadings, readHistory } from '@frameloop/stream-processors/archive/history'
import { selectOffsets } from '@frameloop/stream-processors/catalog/sql'
import type { Position } from '@frameloop/stream-processors/chain/bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'

/** How long it is given to read what was there when the question came. */
const patience: Ms = 30_000

/** How many records of these topics that are there now it has not read, after it was given time to; of those that are `wanted`. */
export async function unreadRecords(
  topicNames: readonly string[],
  { pool, store, brokers }: { readonly pool: Pool; readonly store: ObjectStore; readonly brokers: string },
  isWanted: (record: BusRecord) => boolean = () => true,
): Promise<number> {
  const admin = openKafka(brokers, 'catalog-lag', openLog('catalog-lag', 'error')).admin()
  await admin.connect()
  const ends: Position[] = []
  try {
    for (const topic of topicNames) for (const { partition, high } of await admin.fetchTopicOffsets(topic)) ends.push({ topic, partition, offset: Number(high) })
  } finally {
    await admin.disconnect()
  }
  const history = { brokers, sql: pool, store }
  const deadline = Date.now() + patience
  for (;;) {
    const read = await selectOffsets(pool)
    const ranges = ends
      .map(({ topic, partition, offset }) => ({ topic, partition, from: read.get(`${topic} ${partition}`) ?? 0, until: offset }))
      .filter((range) => range.from < range.until)
    // the last offsets of a partition are markers mostly, which nobody reads
    let records = 0
    for await (const record of readHistory(await planReadings(ranges, history), history, 'frameloop.catalog-lag', new AbortController().signal)) if (isWanted(record)) records += 1
    if (records === 0 || Date.now() >= deadline) return records
    await sleep(500)
  }
}
