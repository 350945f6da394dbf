/** What must exist before the first frame: buckets, tables, topics, schemas. Every step may be repeated. */
import { Fault, toError } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { schemaTexts } from '@frameloop/schemas/events'
import { bucketName, bucketRoles } from '@frameloop/schemas/object-keys'
import { allTopics, consumedTopics, deadLetterTopic, statefulStages, stateTopic, subjectOf } from '@frameloop/schemas/topics'
import { root } from './home.ts'

export async function provisionBuckets(store: ObjectStore, prefix: string): Promise<void> {
  for (const role of bucketRoles) await store.ensureBucket(bucketName(prefix, role), role === 'raw')
}

export async function migrate(databaseUrl: string, log: Log): Promise<void> {
  // loaded where it is needed: most commands provision nothing
  const { runner } = await import('node-pg-migrate')
  await runner({
    databaseUrl,
    dir: `${root}/deploy/migrations`,
    direction: 'up',
    migrationsTable: 'migrations',
    checkOrder: true,
    log: (text: string) => log.debug(text),
    verbose: false,
  })
}

interface TopicConfig {
  readonly topic: string
  readonly configEntries: { name: string; value: string }[]
}

function topicConfigs(): TopicConfig[] {
  const entries = (config: Readonly<Record<string, string | number>>) => Object.entries(config).map(([name, value]) => ({ name, value: String(value) }))
  const kept = allTopics.map(({ name, retention, retentionBytes, compacted }) => ({
    topic: name,
    configEntries: entries(compacted ? { 'cleanup.policy': 'compact' } : { 'retention.ms': retention, ...(retentionBytes ? { 'retention.bytes': retentionBytes } : {}) }),
  }))
  const dead = consumedTopics.map(({ name }) => ({ topic: deadLetterTopic(name), configEntries: entries({ 'retention.ms': 30 * 86_400_000 }) }))
  const memory = statefulStages.map((stage) => ({ topic: stateTopic(stage), configEntries: entries({ 'cleanup.policy': 'compact', 'segment.ms': 3_600_000 }) }))
  return [...kept, ...dead, ...memory]
}

/** Makes the topics that are missing; those that are there keep their partitions, because keys would move. */
export async function provisionTopics(brokers: string, partitions: number, replicas: number, log: Log): Promise<void> {
  const admin = openKafka(brokers, 'provision', log).admin()
  await admin.connect()
  try {
    const there = new Set(await admin.listTopics())
    const missing = topicConfigs().filter(({ topic }) => !there.has(topic))
    if (missing.length > 0)
      await admin.createTopics({ waitForLeaders: true, topics: missing.map((config) => ({ ...config, numPartitions: partitions, replicationFactor: replicas })) })
  } finally {
    await admin.disconnect()
  }
}

/** Registers every schema under FULL_TRANSITIVE. Throws `SCHEMA_INCOMPATIBLE`. */
export async function provisionSchemas(registryUrl: string): Promise<void> {
  const { Compatibility, SchemaRegistryClient } = await import('@confluentinc/schemaregistry')
  const client = new SchemaRegistryClient({ baseURLs: [registryUrl] })
  await client.updateDefaultConfig({ compatibility: Compatibility.FULL_TRANSITIVE })
  for (const { name, event } of allTopics) {
    try {
      await client.register(subjectOf(name), { schema: schemaTexts[event], schemaType: 'AVRO' })
    } catch (thrown) {
      throw new Fault('SCHEMA_INCOMPATIBLE', `The registry refuses the schema of ${name}: ${toError(thrown).message}`, { topic: name }, thrown)
    }
  }
}
