import RequestQueue from 'kafkajs/src/network/requestQueue/index.js'
import { expect, test } from 'vitest'
import './kafka.ts'

test('an idle Kafka client sets no timers: three percent of a core went into nothing', () => {
  const logger = { namespace: () => logger, debug: () => {}, warn: () => {} }
  const queue = new RequestQueue({ maxInFlightRequests: 1, requestTimeout: 1_000, enforceRequestTimeout: false, clientId: 'test', broker: 'test', logger, isConnected: () => true })
  queue.checkPendingRequests()
  expect(queue.throttleCheckTimeoutId).toBeNull()
})
