/** kafkajs behind one file: the pure-JavaScript client that needs no compiler, for the edge and for administration. */
import { type Admin, type Consumer, Kafka, logLevel, type Producer } from 'kafkajs'
import type { Log } from './log.ts'

export type { Admin, Consumer, IHeaders, Producer } from 'kafkajs'

export interface KafkaClient {
  admin(): Admin
  producer(): Producer
  consumer(groupId: string): Consumer
}

/** kafkajs with pauses that suit a broker that is restarted nearby; `clientId` names the process in the broker's log. */
export function openKafka(brokers: string, clientId: string, log: Log): KafkaClient {
  const kafka = new Kafka({
    clientId,
    brokers: brokers.split(',').map((broker) => broker.trim()),
    connectionTimeout: 3_000,
    requestTimeout: 15_000,
    retry: { initialRetryTime: 50, maxRetryTime: 2_000, retries: 8 },
    logLevel: logLevel.WARN,
    logCreator:
      () =>
      ({ level, log: entry }) => {
        const { message, logger: _, timestamp: __, ...fields } = entry
        if (level <= logLevel.WARN) log.debug({ ...fields }, `kafka client said: ${message}`)
      },
  })
  return {
    admin: () => kafka.admin(),
    // idempotence needs acks=all and keeps the order of a partition through retries
    producer: () => kafka.producer({ idempotent: true, maxInFlightRequests: 5, allowAutoTopicCreation: false, retry: { retries: 5, initialRetryTime: 50, maxRetryTime: 2_000 } }),
    consumer: (groupId) => kafka.consumer({ groupId, allowAutoTopicCreation: false, retry: { retries: 20, initialRetryTime: 50, maxRetryTime: 2_000 } }),
  }
}
