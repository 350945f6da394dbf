/**
 * Events that belong to a database transaction: written with it, published afterwards in order, at least once.
 * Any number of processes may run the loop; they take turns, so that the order of a key is the order of its rows.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Producer } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { inTransaction, type Pool, type Sql } from '@frameloop/kit/postgres'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import type { Events } from '@frameloop/schemas/events'
import { allTopics, type EventName, type Topic } from '@frameloop/schemas/topics'

/** Puts an event into the outbox of the transaction `sql` is in. */
export async function enqueue<Name extends EventName>(sql: Sql, topic: Topic<Name>, key: string, id: string, event: Events[Name]): Promise<void> {
  await sql.query('insert into outbox (topic, key, event_id, event_time, event) values ($1, $2, $3, now(), $4)', [topic.name, key, id, JSON.stringify(event)])
}

interface Row {
  readonly id: number
  readonly topic: string
  readonly key: string
  readonly event_id: string
  readonly event_time: Date
  readonly event: Events[EventName]
}

const topicNames = allTopics.map(({ name }) => name)

async function publishSome(pool: Pool, producer: Producer, codec: Codec): Promise<number> {
  return inTransaction(pool, async (client) => {
    // a topic that only a later version knows is that one's to publish
    const { rows } = await client.query<Row>('select id, topic, key, event_id, event_time, event from outbox where topic = any($1) order by id limit 200 for update', [topicNames])
    if (rows.length === 0) return 0
    const messages = new Map<string, { key: string; value: Buffer; headers: Record<string, string> }[]>()
    for (const row of rows) {
      const topic = allTopics.find(({ name }) => name === row.topic) as (typeof allTopics)[number]
      const list = messages.get(row.topic) ?? []
      list.push(await recordOf(codec, topic, row.event, { key: row.key, id: row.event_id, time: row.event_time.getTime(), source: 'outbox', traceparent: '' }))
      messages.set(row.topic, list)
    }
    await producer.sendBatch({ acks: -1, topicMessages: [...messages].map(([topic, list]) => ({ topic, messages: list })) })
    await client.query('delete from outbox where id = any($1)', [rows.map(({ id }) => id)])
    return rows.length
  })
}

export async function runOutbox(pool: Pool, producer: Producer, codec: Codec, log: Log, signal: AbortSignal): Promise<void> {
  let failing = false
  while (!signal.aborted) {
    try {
      const published = await publishSome(pool, producer, codec)
      failing = false
      if (published > 0) continue
    } catch (thrown) {
      if (!failing && !signal.aborted) log.warn({ err: thrown }, 'outbox waits')
      failing = true
    }
    await sleep(failing ? 2_000 : 250, undefined, { signal }).catch(() => {})
  }
}
