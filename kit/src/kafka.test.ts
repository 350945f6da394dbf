import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import Connection from 'kafkajs/src/network/connection.js'
import RequestQueue from 'kafkajs/src/network/requestQueue/index.js'
import { expect, test } from 'vitest'
import './kafka.ts'
import { until } from './retry.ts'

test('an idle Kafka client sets no timers: three percent of a core went into nothing', () => {
  const logger = { namespace: () => logger, debug: () => {}, warn: () => {} }
  const queue = new RequestQueue({ maxInFlightRequests: 1, requestTimeout: 1_000, enforceRequestTimeout: false, clientId: 'test', broker: 'test', logger, isConnected: () => true })
  queue.checkPendingRequests()
  expect(queue.throttleCheckTimeoutId).toBeNull()
})

test('a connection that broke in the middle of an answer reads its next one from the beginning: the agent died of it', async () => {
  const sockets: Socket[] = []
  const server = createServer((socket) => sockets.push(socket)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const logger = { namespace: () => logger, debug: () => {}, warn: () => {}, error: () => {}, info: () => {} }
  const { port } = server.address() as AddressInfo
  const socketFactory = ({ host, onConnect }: { host: string; onConnect: () => void }): Socket => connect({ host, port }, onConnect)
  const connection = new Connection({ host: '127.0.0.1', port, logger, socketFactory, connectionTimeout: 1_000, requestTimeout: 1_000 })
  await connection.connect()
  // a hundred bytes were announced, two came
  sockets[0]?.write(Buffer.from([0, 0, 0, 100, 1, 2]))
  await until(() => connection.bytesBuffered === 6 || undefined, 2_000, 5)
  sockets[0]?.destroy()
  await until(() => !connection.isConnected() || undefined, 2_000, 5)
  await connection.connect()
  expect(connection.chunks).toEqual([])
  sockets[1]?.write(Buffer.from([0, 0, 0, 50, 9]))
  expect(await until(() => connection.bytesNeeded === 54 || undefined, 2_000, 5)).toBe(true)
  await connection.disconnect()
  server.close()
})
