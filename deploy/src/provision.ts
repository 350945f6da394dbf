/** What must exist before the first frame: buckets, tables, topics, schemas. Every step may be repeated. */
import { databaseSettings, kafkaSettings, objectStoreSettings, readConfig } from '@frameloop/kit/config'
import { Fault, toError } from '@frameloop/kit/fault'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { type Log, openLog } from '@frameloop/kit/log'
import { type ObjectStore, openObjectStore } from '@frameloop/kit/object-store'
import type { Bytes } from '@frameloop/kit/units'
import { schemaTexts } from '@frameloop/schemas/events'
import { bucketName, bucketRoles } from '@frameloop/schemas/object-keys'
import { allTopics, attemptsTopic, consumedTopics, deadLetterRetention, deadLetterTopic, statefulStages, stateTopic, subjectOf } from '@frameloop/schemas/topics'
import Type, { type Static } from 'typebox'
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

/** Of a record that people or agents send; what a stage makes of one (a dead letter with its headers, its memory) may be a little larger. */
const recordLimit: Bytes = 8_000_000
const ownRecordLimit: Bytes = 9_000_000

function topicConfigs(): TopicConfig[] {
  const entries = (config: Readonly<Record<string, string | number>>) =>
    // the time of a record is when the broker took it: agents' clocks are what is to be told from it
    Object.entries({ 'message.timestamp.type': 'LogAppendTime', ...config }).map(([name, value]) => ({ name, value: String(value) }))
  const kept = allTopics.map(({ name, retention, retentionBytes, compacted }) => ({
    topic: name,
    configEntries: entries({
      'max.message.bytes': recordLimit,
      ...(compacted ? { 'cleanup.policy': 'compact' } : { 'retention.ms': retention, ...(retentionBytes ? { 'retention.bytes': retentionBytes } : {}) }),
    }),
  }))
  const dead = consumedTopics.map(({ name }) => ({
    topic: deadLetterTopic(name),
    configEntries: entries({ 'max.message.bytes': ownRecordLimit, 'retention.ms': deadLetterRetention }),
  }))
  const memory = [...statefulStages.map(stateTopic), attemptsTopic].map((topic) => ({
    topic,
    configEntries: entries({ 'max.message.bytes': ownRecordLimit, 'cleanup.policy': 'compact', 'segment.ms': 3_600_000 }),
  }))
  return [...kept, ...dead, ...memory]
}

/** Makes the topics that are missing; those that are there keep their partitions, because keys would move. */
export async function provisionTopics(brokers: string, { topicPartitions, topicReplicas }: Static<typeof TopicSettings>, log: Log): Promise<void> {
  const admin = openKafka(brokers, 'provision', log).admin()
  await admin.connect()
  try {
    const there = new Set(await admin.listTopics())
    const missing = topicConfigs().filter(({ topic }) => !there.has(topic))
    if (missing.length > 0)
      await createTopics(
        admin,
        missing.map((config) => ({ ...config, numPartitions: topicPartitions, replicationFactor: topicReplicas })),
      )
  } finally {
    await admin.disconnect()
  }
}

/** Registers every schema under FULL_TRANSITIVE, and leaves the registry as it is for others. Throws `SCHEMA_INCOMPATIBLE`. */
export async function provisionSchemas(registryUrl: string): Promise<void> {
  const { Compatibility, SchemaRegistryClient } = await import('@confluentinc/schemaregistry')
  // without a limit it waits for good for an answer that was lost with its connection (seen); with one it asks again
  const client = new SchemaRegistryClient({ baseURLs: [registryUrl], createAxiosDefaults: { timeout: 10_000 } })
  for (const { name, event } of allTopics) {
    const bind = () => client.updateConfig(subjectOf(name), { compatibility: Compatibility.FULL_TRANSITIVE })
    try {
      // a subject that is not there yet takes no settings
      const isBound = await bind().then(
        () => true,
        () => false,
      )
      await client.register(subjectOf(name), { schema: schemaTexts[event], schemaType: 'AVRO' })
      if (!isBound) await bind()
    } catch (thrown) {
      throw new Fault('SCHEMA_INCOMPATIBLE', `The registry refuses the schema of ${name}: ${toError(thrown).message}`, { topic: name }, thrown)
    }
  }
}

export const TopicSettings = Type.Object({
  topicPartitions: Type.Integer({ minimum: 1, default: 6, description: 'partitions of each new topic' }),
  topicReplicas: Type.Integer({ minimum: -1, default: -1, description: 'replicas of each new topic; -1: as many as the broker makes by itself' }),
})

const ProvisionSettings = Type.Object({ ...kafkaSettings, ...objectStoreSettings, ...databaseSettings, ...TopicSettings.properties })

/** `frameloop provision`: all of it, in services that the environment names. Throws `CONFIG_INVALID`. */
export async function provision(env: NodeJS.ProcessEnv, say: (text: string) => void): Promise<void> {
  const config = readConfig(ProvisionSettings, env)
  const log = openLog('provision', 'warn')
  const store = openObjectStore(config)
  try {
    await provisionBuckets(store, config.bucketPrefix)
    say('buckets are there')
    await migrate(config.databaseUrl, log)
    say('tables are there')
    await provisionTopics(config.kafkaBrokers, config, log)
    say('topics are there')
    await provisionSchemas(config.schemaRegistryUrl)
    say('schemas are there')
  } finally {
    store.close()
  }
}
