import { createServer as createHttpServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { createServer, type Socket } from 'node:net'
import { afterAll, expect, test } from 'vitest'
import { openObjectStore } from './object-store.ts'
import type { Bytes } from './units.ts'

const servers: { close(): void }[] = []
afterAll(() => {
  for (const server of servers) server.close()
})

/** A store that answers as told and then says nothing more. */
async function storeThat(answers: (socket: Socket) => void, slowest?: Bytes) {
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('data', () => answers(socket))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  servers.push({
    close() {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  })
  const { port } = server.address() as AddressInfo
  return openObjectStore(
    { s3Endpoint: `http://127.0.0.1:${port}`, s3Region: 'us-east-1', awsAccessKeyId: 'a', awsSecretAccessKey: 'b' },
    { silence: 200, ...(slowest ? { slowest } : {}) },
  )
}

test('a store that takes a request and never answers is given up, for reading and for writing', async () => {
  const store = await storeThat(() => {})
  await expect(store.get('bucket', 'key')).rejects.toMatchObject({ code: 'OBJECT_STORE_UNAVAILABLE' })
  await expect(store.putOnce({ bucket: 'bucket', key: 'key', body: Buffer.from('x'), contentType: 'text/plain' })).rejects.toMatchObject({ code: 'OBJECT_STORE_UNAVAILABLE' })
  store.close()
})

test('an upload that a kernel has taken at once is given the time to travel, where links are thin', async () => {
  const put = { bucket: 'bucket', key: 'key', body: Buffer.alloc(50_000), contentType: 'text/plain' }
  const slowly = (socket: Socket): void => {
    socket.pause()
    setTimeout(() => {
      socket.resume()
      socket.end('HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n')
    }, 500)
  }
  const thin = await storeThat(slowly, 100_000)
  expect(await thin.putOnce(put)).toMatchObject({ bytes: 50_000 })
  thin.close()
  const near = await storeThat(slowly)
  await expect(near.putOnce(put)).rejects.toMatchObject({ code: 'OBJECT_STORE_UNAVAILABLE' })
  near.close()
})

test('a store that falls silent in the middle of an object is given up', async () => {
  const store = await storeThat((socket) => socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nthe beginning'))
  await expect(store.get('bucket', 'key')).rejects.toMatchObject({ code: 'OBJECT_STORE_UNAVAILABLE' })
  store.close()
})

test.each(['', '../other/key', 'raw/../../other/key', 'raw/a\0b', `raw/${'x'.repeat(2_000)}`])(
  'a key that no object can have is missing, whatever its address would be: %j',
  async (key) => {
    const store = await storeThat((socket) => socket.end('HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret'))
    await expect(store.get('bucket', key)).rejects.toMatchObject({ code: 'OBJECT_MISSING' })
    store.close()
  },
)

test('a store whose clock is days away from ours is asked again by its own time, and from then on at once', async () => {
  const dates: string[] = []
  const theirs = Date.now() - 3 * 86_400_000
  const server = createHttpServer((request, response) => {
    const signed = String(request.headers['x-amz-date'])
    dates.push(signed)
    const at = Date.parse(signed.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, '$1-$2-$3T$4:$5:$6Z'))
    response.setHeader('date', new Date(theirs).toUTCString())
    if (Math.abs(at - theirs) > 900_000) response.writeHead(403).end('<Error><Code>RequestTimeTooSkewed</Code><Message>too far</Message></Error>')
    else response.end('bytes')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  servers.push(server)
  const { port } = server.address() as AddressInfo
  const store = openObjectStore({ s3Endpoint: `http://127.0.0.1:${port}`, s3Region: 'us-east-1', awsAccessKeyId: 'a', awsSecretAccessKey: 'b' })
  expect((await store.get('bucket', 'one')).toString()).toBe('bytes')
  expect((await store.get('bucket', 'two')).toString()).toBe('bytes')
  expect(dates).toHaveLength(3)
  store.close()
})

test('an object that is longer than it may be is not read', async () => {
  let asked = 0
  const server = createHttpServer((_, response) => {
    asked += 1
    response.writeHead(200, { 'content-length': 1_000 })
    response.write('the beginning')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  servers.push(server)
  const { port } = server.address() as AddressInfo
  const store = openObjectStore({ s3Endpoint: `http://127.0.0.1:${port}`, s3Region: 'us-east-1', awsAccessKeyId: 'a', awsSecretAccessKey: 'b' })
  await expect(store.get('bucket', 'long', undefined, 999)).rejects.toMatchObject({ code: 'SIZE_MISMATCH' })
  expect(asked).toBe(1)
  store.close()
})

test('what the store refuses is told in its own words and not asked again; what fails on its side is asked again once', async () => {
  let asked = 0
  const server = createHttpServer((request, response) => {
    asked += 1
    if (request.url?.endsWith('busy') && asked === 1) response.writeHead(503).end()
    else if (request.url?.endsWith('busy')) response.end('bytes')
    else response.writeHead(403).end('<Error><Code>AccessDenied</Code><Message>no rights</Message></Error>')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  servers.push(server)
  const { port } = server.address() as AddressInfo
  const store = openObjectStore({ s3Endpoint: `http://127.0.0.1:${port}`, s3Region: 'us-east-1', awsAccessKeyId: 'a', awsSecretAccessKey: 'b' })
  expect((await store.get('bucket', 'busy')).toString()).toBe('bytes')
  asked = 0
  await expect(store.get('bucket', 'secret')).rejects.toMatchObject({ name: 'AccessDenied', message: 'no rights' })
  expect(asked).toBe(1)
  store.close()
})
