import { once } from 'node:events'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { type WebSocket as ServerSocket, WebSocket, WebSocketServer } from 'ws'
import { connectTo } from './client.ts'
import { FrameloopError } from './problem.ts'
import { pauseBefore } from './socket.ts'

const opened: Server[] = []
afterEach(() => {
  for (const server of opened.splice(0)) {
    server.closeAllConnections()
    server.close()
  }
})

/** A server that says what a test wants over each connection, one after the other. */
async function serverThat(...turns: ((socket: ServerSocket) => void)[]): Promise<string> {
  const server = createServer((request, response) => {
    const isKnown = request.headers.authorization !== 'Bearer fl_unknown'
    response.writeHead(isKnown ? 200 : 401, { 'content-type': 'application/json' })
    response.end(
      JSON.stringify(isKnown ? { ticket: 'one', models: [] } : { status: 401, code: 'UNAUTHORIZED', detail: 'The key is unknown or was revoked', hint: 'Ask for a key' }),
    )
  })
  const sockets = new WebSocketServer({ server })
  sockets.on('connection', (socket) => (turns.length > 1 ? turns.shift() : turns[0])?.(socket))
  opened.push(server)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

const answer = (partition: number, offset: number): string => JSON.stringify({ kind: 'prediction', cameraId: 'a', answer: 'free', resume: `${partition}:${offset}` })
const heard = (socket: ServerSocket, act: (text: string) => void): void => {
  socket.on('message', (data) => act(String(data)))
}

test('a feed that was interrupted goes on behind the last answer of each partition', async () => {
  const wishes: unknown[] = []
  const url = await serverThat(
    (socket) =>
      heard(socket, (text) => {
        wishes.push(JSON.parse(text))
        for (const message of [answer(0, 7), answer(2, 5), answer(0, 8)]) socket.send(message)
        // as a process does that is killed
        setTimeout(() => socket.terminate(), 20)
      }),
    (socket) =>
      heard(socket, (text) => {
        wishes.push(JSON.parse(text))
        socket.send(answer(0, 9))
      }),
  )
  const seen: string[] = []
  for await (const message of connectTo({ url, WebSocket }).feed({ cameras: ['a'], ahead: 10 })) {
    if (message.kind === 'prediction') seen.push(message.resume)
    if (seen.length === 4) break
  }
  expect(seen).toEqual(['0:7', '2:5', '0:8', '0:9'])
  expect(wishes).toEqual([
    { cameras: ['a'], credit: 10 },
    { cameras: ['a'], credit: 10, resume: ['0:8', '2:5'] },
  ])
})

test('a reader gives credit for what it has taken, not for what lies in its memory', async () => {
  const credits: number[] = []
  const url = await serverThat((socket) =>
    heard(socket, (text) => {
      const { credit } = JSON.parse(text) as { credit: number }
      credits.push(credit)
      for (let sent = 0; sent < credit; sent += 1) socket.send(answer(0, sent))
    }),
  )
  const feed = connectTo({ url, WebSocket }).feed({ ahead: 4 })
  const reading = feed[Symbol.asyncIterator]()
  await reading.next()
  expect(credits).toEqual([4])
  await reading.next()
  await expect.poll(() => credits).toEqual([4, 2])
  feed.close()
  // what had come is still handed out, then it ends
  let left = 0
  while (!(await reading.next()).done) left += 1
  expect(left).toBeGreaterThanOrEqual(2)
})

test('pictures come with the bytes that the server sent', async () => {
  const json = Buffer.from(JSON.stringify({ kind: 'picture', cameraId: 'a', frameId: 'f', contentType: 'image/jpeg' }))
  const head = Buffer.alloc(4)
  head.writeUInt32BE(json.length)
  const url = await serverThat((socket) => heard(socket, () => socket.send(Buffer.concat([head, json, Buffer.from([1, 2, 3])]))))
  for await (const message of connectTo({ url, WebSocket }).feed({ pictures: 'jpeg' })) {
    expect(message).toEqual({ kind: 'picture', cameraId: 'a', frameId: 'f', contentType: 'image/jpeg', bytes: Uint8Array.of(1, 2, 3) })
    break
  }
})

test('a key that the server does not know ends a feed with the reason, and no socket is opened again and again', async () => {
  let connections = 0
  const url = await serverThat(() => {
    connections += 1
  })
  const reading = connectTo({ url, key: 'fl_unknown', WebSocket }).feed()[Symbol.asyncIterator]()
  await expect(reading.next()).rejects.toMatchObject({ code: 'UNAUTHORIZED', status: 401, hint: 'Ask for a key' })
  expect(connections).toBe(0)
})

test('what a stream has not answered when it breaks is asked again, in order, and answered once', async () => {
  const asked: number[][] = []
  const url = await serverThat(
    ...[2, 100].map((patience, turn) => (socket: ServerSocket) => {
      let left = patience
      socket.on('message', (data, isBinary) => {
        if (!isBinary) return socket.send(JSON.stringify({ kind: 'ready', credit: 3 }))
        const bytes = data as Buffer
        const { id } = JSON.parse(bytes.toString('utf8', 4, 4 + bytes.readUInt32BE(0))) as { id: number }
        asked[turn] = [...(asked[turn] ?? []), id]
        left -= 1
        if (left < 0) socket.terminate()
        else if (id === 4) socket.send(JSON.stringify({ kind: 'error', id, code: 'PICTURE_UNREADABLE', detail: 'no picture' }))
        else socket.send(JSON.stringify({ kind: 'answer', id, answer: `of ${bytes.at(-1)}` }))
      })
    }),
  )
  const stream = connectTo({ url, WebSocket }).stream('occupancy')
  const answers = await Promise.allSettled([10, 11, 12, 13, 14].map((byte) => stream.ask(Uint8Array.of(byte))))
  expect(answers.map((one) => (one.status === 'fulfilled' ? one.value.answer : (one.reason as FrameloopError).code))).toEqual([
    'of 10',
    'of 11',
    'of 12',
    'PICTURE_UNREADABLE',
    'of 14',
  ])
  expect(asked[1]).toEqual([3, 4, 5])
  expect(stream.unanswered).toBe(0)
  stream.close()
  await expect(stream.ask(Uint8Array.of(1))).rejects.toThrow(FrameloopError)
})

const readied = (socket: ServerSocket, more: object = {}): void => socket.send(JSON.stringify({ kind: 'ready', credit: 2, ...more }))
/** The id of a picture that came. */
const idOf = (data: Buffer): number => (JSON.parse(data.toString('utf8', 4, 4 + data.readUInt32BE(0))) as { id: number }).id

test('a stream whose model is still being loaded is opened again, and what was asked is answered then', async () => {
  const url = await serverThat(
    (socket) => heard(socket, () => socket.send(JSON.stringify({ kind: 'error', code: 'MODEL_UNAVAILABLE', detail: 'No model serves it yet' }))),
    (socket) =>
      socket.on('message', (data: Buffer, isBinary) => {
        if (isBinary) socket.send(JSON.stringify({ kind: 'answer', id: idOf(data), answer: 'free' }))
        else readied(socket)
      }),
  )
  const stream = connectTo({ url, WebSocket }).stream('occupancy')
  expect(await stream.ask(new Uint8Array([1]))).toMatchObject({ answer: 'free' })
  stream.close()
})

test('a task that the server does not know ends a stream with the reason', async () => {
  const url = await serverThat((socket) => heard(socket, () => socket.send(JSON.stringify({ kind: 'error', code: 'TASK_UNKNOWN', detail: 'There is no task x' }))))
  await expect(
    connectTo({ url, WebSocket })
      .stream('x')
      .ask(new Uint8Array([1])),
  ).rejects.toMatchObject({ code: 'TASK_UNKNOWN' })
})

test('a question that is not answered in time fails, one that is too large is not sent, and the others go on', async () => {
  const url = await serverThat((socket) =>
    socket.on('message', (data: Buffer, isBinary) => {
      if (!isBinary) readied(socket, { largest: 1_000 })
      // the first one is answered far too late
      else setTimeout(() => socket.send(JSON.stringify({ kind: 'answer', id: idOf(data), answer: 'free' })), idOf(data) === 1 ? 400 : 0)
    }),
  )
  const stream = connectTo({ url, WebSocket }).stream('occupancy')
  const late = stream.ask(new Uint8Array([1]), { deadlineMs: 100 })
  await expect(late).rejects.toMatchObject({ code: 'DEADLINE_PASSED' })
  await expect(stream.ask(new Uint8Array(2_000))).rejects.toMatchObject({ code: 'PICTURE_TOO_LARGE' })
  // more than there is credit for: what was answered too late has given its own back
  const others = await Promise.all([1, 2, 3, 4].map((byte) => stream.ask(new Uint8Array([byte]))))
  expect(others.map(({ answer: said }) => said)).toEqual(['free', 'free', 'free', 'free'])
  expect(stream.unanswered).toBe(0)
  stream.close()
})

test('pauses grow from a quarter of a second to ten, and no two clients wait alike', () => {
  expect([1, 2, 5, 50].map((attempt) => pauseBefore(attempt, 1))).toEqual([250, 500, 4_000, 10_000])
  expect(pauseBefore(3, 0)).toBe(500)
})

test('an address that is none is said at once', () => {
  expect(() => connectTo({ url: 'cameras.example.org', WebSocket })).toThrow('begins with http:// or https://')
})
