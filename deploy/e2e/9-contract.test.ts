/** What the runtime of stages promises, on the real bus and the real object store: the tests that also run in memory. */
import { setTimeout as sleep } from 'node:timers/promises'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { kafkaBus, readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { testStageContract } from '@frameloop/stream-processors/chain/stage-contract'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { BrokerConnection, readTransactionLog, Writer } from '../src/hanging-transactions.ts'
import { env, state } from './session.ts'

const kafka = openKafka(env('KAFKA_BROKERS'), 'contract', openLog('contract', 'error'))
const [admin, producer] = [kafka.admin(), kafka.producer()]
const store = objectStoreOf(state.environment)

beforeAll(() => Promise.all([admin.connect(), producer.connect()]))
afterAll(async () => {
  await Promise.all([admin.disconnect(), producer.disconnect()])
  store.close()
})

testStageContract('contract', () => ({
  bus: kafkaBus(env('KAFKA_BROKERS')),
  codec: openCodec(openRegistry(env('SCHEMA_REGISTRY_URL'))),
  store,
  async createTopics(topics, partitions) {
    const compact = [{ name: 'cleanup.policy', value: 'compact' }]
    await createTopics(
      admin,
      topics.map(({ topic, compacted }) => ({ topic, numPartitions: partitions, ...(compacted ? { configEntries: compact } : {}) })),
    )
  },
  async send(records) {
    for (const { topic, key, value, headers } of records) await producer.send({ topic, messages: [{ key, value, headers: { ...headers } }] })
  },
}))

test('a producer that is thrown away in the middle of a transaction lets go of it, and its process could end', async () => {
  const bus = kafkaBus(env('KAFKA_BROKERS'))
  const log = openLog('contract', 'fatal')
  const topic = 'contract.discarded'
  await createTopics(admin, [{ topic, numPartitions: 1 }])
  const group = 'frameloop.contract.discarded'
  const consumer = await bus.connectConsumer({ groupId: group, instance: `${group}.1`, topics: [topic], log })
  const transactional = await bus.openProducer(`${group}.1`, log)
  let discarding: Promise<void> | undefined
  const record = { topic, key: 'a', value: Buffer.from('x'), headers: {} }
  const transacting = transactional.transact([record], [{ topic, partition: 0, offset: 1 }], consumer, (step) => {
    // just before the group's offsets are sent
    if (step === 'produced') discarding = transactional.discard()
  })
  const ended = Promise.allSettled([transacting, transacting.catch(() => {}).then(() => discarding)])
  expect(await Promise.race([ended.then(() => 'ended'), sleep(45_000, 'hangs')])).toBe('ended')
  await consumer.close()
})

/** EndTxn as a client sends it again that was not answered: with the epoch that the id has now. */
async function endLate(transactionalId: string): Promise<void> {
  const broker = await BrokerConnection.open(env('KAFKA_BROKERS').split(',')[0] ?? '')
  try {
    const known = (await readTransactionLog(env('KAFKA_BROKERS'))).findLast(({ id }) => id === transactionalId)
    if (!known) throw new Error(`the coordinator knows no ${transactionalId}`)
    await broker.call([26, 3], new Writer().string(transactionalId).int64(known.producerId).int16(known.epoch).int8(1).tags())
  } finally {
    broker.close()
  }
}

test.each(['begun', 'produced', 'offsets sent', 'committed'] as const)(
  'a commit that was held on its way and comes when the next transaction has %s loses no record and lets none out twice',
  async (at) => {
    const bus = kafkaBus(env('KAFKA_BROKERS'))
    const log = openLog('contract', 'fatal')
    const name = `contract.late.${at.replace(' ', '-')}`
    await createTopics(admin, [
      { topic: name, numPartitions: 1 },
      { topic: `${name}.out`, numPartitions: 1 },
    ])
    const group = `frameloop.${name}`
    const consumer = await bus.connectConsumer({ groupId: group, instance: `${group}.1`, topics: [name], log })
    let transactional = await bus.openProducer(`${group}.1`, log)
    const out = (value: string) => [{ topic: `${name}.out`, key: 'a', value: Buffer.from(value), headers: {} }]
    const offset = (to: number) => [{ topic: name, partition: 0, offset: to }]
    await until(() => consumer.assigned.length > 0 || consumer.poll({ lane: 'live', limit: 1, patience: 100 }).then(() => undefined), 30_000, 10)
    await transactional.transact(out('first'), offset(1), consumer)
    const commit = () => transactional.transact(out('second'), offset(2), consumer, async (step) => (step === at ? endLate(`${group}.1`) : undefined))
    // as a stage does it: after any failure a new producer, and on from what is committed
    await commit().catch(async () => {
      await transactional.discard()
      transactional = await bus.openProducer(`${group}.1`, log)
      const [committed] = await consumer.committed()
      if (committed?.offset === 1) await transactional.transact(out('second'), offset(2), consumer)
    })
    expect(await consumer.committed()).toEqual([{ topic: name, partition: 0, offset: 2 }])
    const values: string[] = []
    for await (const { value } of readTopic(env('KAFKA_BROKERS'), name, `${name}.out`, AbortSignal.timeout(180_000))) values.push(String(value))
    expect(values).toEqual(['first', 'second'])
    await transactional.discard()
    await consumer.close()
  },
  60_000,
)

test('a topic on which more and more comes is read to where it ended when it was asked, also a partition that ends with a marker', async () => {
  const topic = 'contract.growing'
  await createTopics(admin, [{ topic, numPartitions: 2 }])
  const bus = kafkaBus(env('KAFKA_BROKERS'))
  const log = openLog('contract', 'fatal')
  const group = 'frameloop.contract.growing'
  const consumer = await bus.connectConsumer({ groupId: group, instance: `${group}.1`, topics: [topic], log })
  const transactional = await bus.openProducer(`${group}.1`, log)
  await transactional.transact([{ topic, key: 'a', value: Buffer.from('the last one'), headers: {} }], [], consumer, () => {})
  await transactional.discard()
  await consumer.close()
  const read = async (): Promise<BusRecord[]> => {
    const records: BusRecord[] = []
    for await (const record of readTopic(env('KAFKA_BROKERS'), 'contract.growing', topic, AbortSignal.timeout(180_000))) records.push(record)
    return records
  }
  const partition = 1 - ((await read())[0]?.partition ?? 0)
  await producer.send({ topic, messages: [{ partition, value: '0' }] })
  let isRead = false
  const growing = (async () => {
    for (let n = 1; !isRead; n += 1) {
      await producer.send({ topic, messages: [{ partition, value: String(n) }] })
      await sleep(10)
    }
  })()
  try {
    expect((await read()).map(({ value }) => value.toString())).toEqual(expect.arrayContaining(['the last one', '0']))
  } finally {
    isRead = true
    await growing
  }
})
