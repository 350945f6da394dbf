/** kafkajs behind one file: the pure-JavaScript client that needs no compiler, for the edge and for administration. */
import { type Admin, type Consumer, type ITopicConfig, Kafka, type Producer as KafkaProducer, logLevel, type SASLOptions } from 'kafkajs'
import Connection from 'kafkajs/src/network/connection.js'
import RequestQueue from 'kafkajs/src/network/requestQueue/index.js'
import { Fault } from './fault.ts'
import type { Log } from './log.ts'
import { until } from './retry.ts'

export type { Admin, Consumer, IHeaders } from 'kafkajs'
export type Producer = Pick<KafkaProducer, 'connect' | 'send' | 'sendBatch' | 'disconnect'>

// kafkajs 2.2.4 looks for requests that wait a thousand times a second once it was connected, with nothing to wait for
// (a timer set to a time long past): 3 % of a core for every idle client
const schedule = RequestQueue.prototype.scheduleCheckPendingRequests
RequestQueue.prototype.scheduleCheckPendingRequests = function (): void {
  if (this.pending.length > 0) schedule.call(this)
}

// kafkajs 2.2.4 keeps the beginning of an answer that a broken connection cut off, and puts the first answer of the next
// connection behind it: what comes of that is read beyond its end, which nobody catches
const connect = Connection.prototype.connect
Connection.prototype.connect = function (): Promise<boolean> {
  if (!this.isConnected()) {
    this.chunks = []
    this.bytesBuffered = 0
    this.bytesNeeded = 4
  }
  return connect.call(this)
}

/** How a cluster is reached that wants to know who is there. */
export interface KafkaConnection {
  /** Comma separated. */
  readonly brokers: string
  /** PEM of the authority and, where the cluster wants one, of a certificate of our own; `{}` trusts the system's authorities. */
  readonly tls?: { readonly ca?: string; readonly cert?: string; readonly key?: string }
  readonly sasl?: { readonly mechanism: 'plain' | 'scram-sha-256' | 'scram-sha-512'; readonly username: string; readonly password: string }
}

export interface KafkaClient {
  admin(): Admin
  producer(): Producer
  /** For seldom records: it asks every five seconds. */
  consumer(groupId: string): Consumer
}

/** kafkajs with pauses that suit a broker that is restarted nearby; `clientId` names the process in the broker's log. */
export function openKafka(to: string | KafkaConnection, clientId: string, log: Log): KafkaClient {
  const { brokers, tls, sasl } = typeof to === 'string' ? ({ brokers: to } as KafkaConnection) : to
  const kafka = new Kafka({
    clientId,
    ...(tls ? { ssl: { ...(tls.ca ? { ca: [tls.ca] } : {}), ...(tls.cert ? { cert: tls.cert } : {}), ...(tls.key ? { key: tls.key } : {}) } } : {}),
    ...(sasl ? { sasl: sasl as SASLOptions } : {}),
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
    consumer: (groupId) => kafka.consumer({ groupId, allowAutoTopicCreation: false, retry: { retries: 1_000_000, initialRetryTime: 500, maxRetryTime: 10_000 } }),
    // at least once, in order. kafkajs's idempotence is not used: after a failed send it takes back its sequence numbers without
    // asking for a new producer id, so the next batch of equal size is taken for a repeat and is never written
    producer: () => renewing(() => kafka.producer({ maxInFlightRequests: 1, allowAutoTopicCreation: false, retry: { retries: 5, initialRetryTime: 50, maxRetryTime: 2_000 } })),
  }
}

/**
 * A producer that is made anew after a send that failed. A kafkajs producer whose first words to a broker were never answered
 * (a half-open connection) says "Broker not connected" for good: it counts as connected and is never set up.
 */
function renewing(make: () => KafkaProducer): Producer {
  let current = make()
  let isConnected = false
  const sending = async <Result>(send: (producer: KafkaProducer) => Promise<Result>): Promise<Result> => {
    const producer = current
    try {
      // once it is, this costs nothing
      if (!isConnected) await producer.connect()
      isConnected = true
      return await send(producer)
    } catch (thrown) {
      // another send may have had it replaced already
      if (current === producer) {
        current = make()
        isConnected = false
      }
      producer.disconnect().catch(() => {})
      throw thrown
    }
  }
  return {
    connect: () => sending(() => Promise.resolve()),
    send: (record) => sending((producer) => producer.send(record)),
    sendBatch: (batch) => sending((producer) => producer.sendBatch(batch)),
    disconnect: () => current.disconnect(),
  }
}

/** Makes topics and waits until each partition has a leader; false when they were there already. Throws `KAFKA_UNAVAILABLE`. */
export async function createTopics(admin: Admin, topics: readonly ITopicConfig[]): Promise<boolean> {
  // kafkajs's own waiting gives up on a broker that has not heard of the new topics yet
  const areNew = await admin.createTopics({ waitForLeaders: false, topics: [...topics] })
  let thrown: unknown
  const haveLeaders = async (): Promise<true | undefined> => {
    try {
      const found = await admin.fetchTopicMetadata({ topics: topics.map(({ topic }) => topic) })
      return found.topics.every(({ partitions }) => partitions.every(({ leader }) => leader >= 0)) || undefined
    } catch (error) {
      thrown = error
      return undefined
    }
  }
  if (!(await until(haveLeaders, 30_000, 100))) throw new Fault('KAFKA_UNAVAILABLE', `No broker leads ${topics.map(({ topic }) => topic).join(', ')} after 30 s`, {}, thrown)
  return areNew
}
