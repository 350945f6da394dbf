/** The catalog reads a dozen topics side by side, in whatever order they come: the rows must not tell. */
import { randomOf } from '@frameloop/kit/random'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { cataloguedTopics, topics } from '@frameloop/schemas/topics'
import { differingRows, rebuiltTables, rowsOf, withCatalogBeside } from '@frameloop/stream-processors/catalog/rebuild'
import { readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { afterAll, expect, test } from 'vitest'
import { env, pool } from './session.ts'

afterAll(() => pool.end())

const codec = openCodec(openRegistry(env('SCHEMA_REGISTRY_URL')))

/** Of one key on one topic: enough of the street's frames, all of everything odd. */
const perKey = 60

/** What lies on the topics, and losses that contradict each other: evicted, then erased from the same seq on. */
async function history(): Promise<BusRecord[]> {
  const records: BusRecord[] = []
  for (const topic of cataloguedTopics) {
    const seen = new Map<string, number>()
    for await (const record of readTopic(env('KAFKA_BROKERS'), 'frameloop.test', topic, AbortSignal.timeout(180_000))) {
      const count = (seen.get(record.key) ?? 0) + 1
      seen.set(record.key, count)
      if (count <= perKey) records.push(record)
    }
  }
  const loss = { siteId: 's', cameraId: 'interleaved', epoch: 'a'.repeat(32), agentId: 'a', lostAt: Date.UTC(2026, 0, 5) }
  const losses = [
    { ...loss, seqFrom: 1, seqTo: 5, reason: 'evicted' },
    { ...loss, seqFrom: 1, seqTo: 2, reason: 'erased' },
    { ...loss, seqFrom: 1, seqTo: 5, reason: 'evicted' },
  ]
  for (const [offset, event] of losses.entries())
    records.push({
      ...{ topic: topics.mediaLost.name, partition: 9, offset, timestamp: loss.lostAt, key: loss.cameraId, headers: {} },
      value: await codec.encode(topics.mediaLost.name, 'MediaLost', event),
    })
  return records
}

/** Each partition in its own order; which one comes next is drawn, or one topic after the other. */
function interleave(records: readonly BusRecord[], how: 'topics in order' | 'topics reversed' | number): BusRecord[] {
  const queues = new Map<string, BusRecord[]>()
  for (const record of records) {
    const key = `${record.topic} ${record.partition}`
    const queue = queues.get(key) ?? []
    queues.set(key, queue)
    queue.push(record)
  }
  const lists = [...queues.values()]
  if (how === 'topics in order') return lists.flat()
  if (how === 'topics reversed') return lists.reverse().flat()
  const random = randomOf(how)
  const mixed: BusRecord[] = []
  const open = lists.map((list) => ({ list, at: 0 }))
  while (open.length > 0) {
    const drawn = Math.floor(random() * open.length)
    const queue = open[drawn] as (typeof open)[number]
    mixed.push(queue.list[queue.at] as BusRecord)
    queue.at += 1
    if (queue.at === queue.list.length) open.splice(drawn, 1)
  }
  return mixed
}

test('three interleavings of the topics, in batches of other sizes, give equal rows', async () => {
  const records = await history()
  expect(records.length).toBeGreaterThan(200)
  const ways = [
    { how: 'topics in order', schema: 'order_a', batch: 500 },
    { how: 'topics reversed', schema: 'order_b', batch: 17 },
    { how: 11, schema: 'order_c', batch: 61 },
  ] as const
  const fill = async (at: number): Promise<void> => {
    const way = ways[at]
    if (way) {
      await withCatalogBeside(pool, way.schema, async (write) => {
        const list = interleave(records, way.how)
        expect(list.length).toBe(records.length)
        for (let from = 0; from < list.length; from += way.batch) await write((await rowsOf(list.slice(from, from + way.batch), codec)).rows)
        await fill(at + 1)
      })
      return
    }
    for (const table of rebuiltTables) {
      const { rows } = await pool.query<{ n: number }>(`select count(*)::int as n from order_a.${table}`)
      // what nothing has been predicted or refused of yet has no rows
      if (table !== 'predictions' && table !== 'dead_letters') expect(rows[0]?.n, table).toBeGreaterThan(0)
      for (const other of ['order_b', 'order_c'])
        expect({ table, other, differing: [...(await differingRows(pool, table, 'order_a', other)), ...(await differingRows(pool, table, other, 'order_a'))] }).toEqual({
          table,
          other,
          differing: [],
        })
    }
  }
  await fill(0)
})
