/** What the runtime of stages promises, on the real bus and the real object store: the tests that also run in memory. */
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { kafkaBus } from '@frameloop/stream-processors/chain/kafka-bus'
import { testStageContract } from '@frameloop/stream-processors/chain/stage-contract'
import { afterAll, beforeAll } from 'vitest'
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
    await admin.createTopics({
      waitForLeaders: true,
      topics: topics.map(({ topic, compacted }) => ({ topic, numPartitions: partitions, ...(compacted ? { configEntries: compact } : {}) })),
    })
  },
  async send(records) {
    for (const { topic, key, value, headers } of records) await producer.send({ topic, messages: [{ key, value, headers: { ...headers } }] })
  },
}))
