import { PassThrough } from 'node:stream'
import type { PredictionMade } from '@frameloop/schemas/events'
import { expect, test } from 'vitest'
import { everything } from './access.ts'
import { type FeedSocket, Feeds, Reader } from './feeds.ts'

const wire = new PassThrough()

type Heard = Record<string, unknown>

/** A socket whose reader takes what it is given, or nothing. */
class FakeSocket implements FeedSocket {
  bufferedAmount = 0
  takes = true
  readonly texts: Heard[] = []
  readonly binary: Buffer[] = []
  closed = 0
  pings = 0
  readonly #waiting: (() => void)[] = []
  readonly #handlers = new Map<string, (data: Buffer) => void>()

  send = ((message: string | Buffer, done?: () => void): void => {
    if (typeof message === 'string') this.texts.push(JSON.parse(message) as Heard)
    else this.binary.push(message)
    this.bufferedAmount += message.length
    if (done) this.#waiting.push(done)
    if (this.takes) this.drain()
  }) as FeedSocket['send']

  drain(): void {
    this.bufferedAmount = 0
    for (const done of this.#waiting.splice(0)) done()
  }

  /** What was said first has left, and the buffer is as full as before. */
  trickle(): void {
    this.#waiting.shift()?.()
  }

  close(code: number): void {
    this.closed = code
  }
  terminate(): void {}
  isPaused = false
  pause(): void {
    this.isPaused = true
  }
  resume(): void {
    this.isPaused = false
  }
  ping(): void {
    this.pings += 1
  }
  on = ((event: string, handler: (data: Buffer) => void): unknown => this.#handlers.set(event, handler)) as never

  says(wish: object): void {
    this.#handlers.get('message')?.(Buffer.from(JSON.stringify(wish)))
  }
  answersPing(): void {
    this.#handlers.get('pong')?.(Buffer.alloc(0))
  }
  get answers(): string[] {
    return this.texts.filter(({ kind }) => kind === 'prediction').map(({ cameraId, zone, seq }) => `${String(cameraId)} ${String(zone)} ${String(seq)}`)
  }
}

const picture = { bucket: 'b', key: 'k', sha256: '', bytes: 3, versionId: '', contentType: 'image/jpeg' }
const answer = (cameraId: string, zone: string, seq: number): PredictionMade =>
  ({ cameraId, zone, seq, task: 't', frameId: `${cameraId}-${seq}`, picture, classes: ['a'], scores: [1] }) as unknown as PredictionMade

const open = (): { feeds: Feeds; socket: FakeSocket } => {
  const feeds = new Feeds(() => Promise.resolve(Buffer.from('abc')))
  const socket = new FakeSocket()
  feeds.add(socket as never, wire)
  return { feeds, socket }
}
let offset = 0
const publish = (feeds: Feeds, cameraId: string, zone: string, seq: number, partition = 0): void => {
  offset += 2
  feeds.publish(answer(cameraId, zone, seq), 'trace', { partition, offset })
}

test('a reader gets what it asked for, and nothing before it has asked', () => {
  const { feeds, socket } = open()
  publish(feeds, 'door', 'a', 1)
  socket.says({ cameras: ['door'], zones: ['a'] })
  publish(feeds, 'door', 'a', 2)
  publish(feeds, 'door', 'b', 2)
  publish(feeds, 'gate', 'a', 2)
  socket.says({})
  publish(feeds, 'gate', 'a', 3)
  expect(socket.answers).toEqual(['door a 2', 'gate a 3'])
  expect(socket.texts.at(-1)).toMatchObject({ traceId: 'trace', scores: [{ class: 'a', score: 1 }], resume: `0:${offset}` })
})

test('F1: to a reader that takes nothing the latest of each is kept, and the next message says how many were skipped', () => {
  const { feeds, socket } = open()
  socket.says({})
  socket.takes = false
  socket.bufferedAmount = 1_000_000
  for (let seq = 1; seq <= 5; seq += 1) for (const zone of ['a', 'b']) publish(feeds, 'door', zone, seq)
  expect(socket.answers).toEqual([])
  socket.takes = true
  socket.drain()
  publish(feeds, 'door', 'c', 6)
  expect(socket.answers).toEqual(['door a 5', 'door b 5', 'door c 6'])
  expect(socket.texts.filter(({ skipped }) => skipped !== undefined).map(({ skipped }) => skipped)).toEqual([8])
  expect(feeds.numbers).toMatchObject({ sent: 3, skipped: 8 })
})

test('credit: no more than was granted, then the latest when more is', () => {
  const { feeds, socket } = open()
  socket.says({ credit: 2 })
  for (let seq = 1; seq <= 4; seq += 1) publish(feeds, 'door', 'a', seq)
  expect(socket.answers).toEqual(['door a 1', 'door a 2'])
  socket.says({ credit: 1 })
  expect(socket.answers.at(-1)).toBe('door a 4')
  expect(socket.texts.at(-1)).toMatchObject({ skipped: 1 })
  publish(feeds, 'door', 'a', 5)
  expect(socket.answers).toHaveLength(3)
})

test('who comes back goes on where it was, on each partition, and is told of a gap', () => {
  const { feeds, socket } = open()
  socket.says({})
  publish(feeds, 'door', 'a', 1, 0)
  publish(feeds, 'gate', 'a', 1, 1)
  const places = socket.texts.filter(({ kind }) => kind === 'prediction').map(({ resume }) => String(resume))
  publish(feeds, 'door', 'a', 2, 0)
  publish(feeds, 'gate', 'b', 2, 1)
  const again = new FakeSocket()
  feeds.add(again as never, wire)
  again.says({ resume: places })
  expect(again.answers).toEqual(['door a 2', 'gate b 2'])
  expect(again.texts.some(({ kind }) => kind === 'gap')).toBe(false)
  again.says({ resume: ['0:-1'] })
  expect(again.texts.at(-1)).toMatchObject({ kind: 'error', code: 'REQUEST_INVALID' })
  again.says({ resume: ['7:5'] })
  expect(again.texts.at(-1)).toMatchObject({ kind: 'gap', partition: 7, after: 5, next: null })
})

test('places that are named twice count once, the latest of a partition, and are gone through together', () => {
  const { feeds } = open()
  for (let seq = 1; seq <= 3; seq += 1) publish(feeds, 'door', `z${seq}`, seq, 0)
  publish(feeds, 'gate', 'a', 1, 1)
  const again = new FakeSocket()
  feeds.add(again as never, wire)
  const first = offset - 6
  again.says({ resume: [...Array.from({ length: 900 }, () => `0:${first}`), `0:${first - 1}`, `1:${offset - 2}`] })
  expect(again.answers).toEqual(['door z2 2', 'door z3 3', 'gate a 1'])
})

test('a picture is sent once a frame, to those who want it, as JSON and bytes in one message', async () => {
  const { feeds, socket } = open()
  const plain = new FakeSocket()
  feeds.add(plain as never, wire)
  socket.says({ pictures: 'jpeg' })
  plain.says({ pictures: 'none' })
  for (const zone of ['a', 'b']) publish(feeds, 'door', zone, 1)
  await new Promise(setImmediate)
  expect(socket.binary).toHaveLength(1)
  const [message = Buffer.alloc(4)] = socket.binary
  const end = 4 + message.readUInt32BE(0)
  expect(JSON.parse(message.toString('utf8', 4, end))).toEqual({ kind: 'picture', cameraId: 'door', frameId: 'door-1', contentType: 'image/jpeg' })
  expect(message.toString('utf8', end)).toBe('abc')
  expect(plain.binary).toEqual([])
})

test('F1: who takes no answers is not heard either, until they do', () => {
  const { feeds, socket } = open()
  socket.takes = false
  socket.says({})
  expect(socket.isPaused).toBe(false)
  socket.bufferedAmount = 1_000_000
  feeds.look(0)
  expect(socket.isPaused).toBe(false)
  socket.says({ colours: [] })
  expect(socket.isPaused).toBe(true)
  feeds.look(1_000)
  expect(socket.isPaused).toBe(true)
  socket.drain()
  feeds.look(2_000)
  expect([socket.isPaused, socket.closed]).toEqual([false, 0])
})

test('F2: who takes nothing for 20 s, or answers no ping, is closed, and nobody else', () => {
  const { feeds, socket } = open()
  const good = new FakeSocket()
  feeds.add(good as never, wire)
  socket.bufferedAmount = 1_000_000
  feeds.look(0)
  feeds.look(19_000)
  expect(socket.closed).toBe(0)
  feeds.look(21_000)
  expect([socket.closed, good.closed, feeds.numbers.stalled]).toEqual([1013, 0, 1])
  feeds.ping()
  good.answersPing()
  feeds.ping()
  expect(good.closed).toBe(0)
  feeds.ping()
  expect(good.closed).toBe(1013)
})

test.each([['no JSON'], ['{ "cameras": "door" }'], ['{ "camera": ["door"] }'], ['{ "credit": -1 }']])('%s is refused with an example', (said) => {
  const feeds = new Feeds(() => Promise.reject(new Error('none')))
  const reader = new Reader(new FakeSocket(), feeds.numbers, everything, wire)
  expect(() => feeds.hear(reader, Buffer.from(said))).toThrow(/a subscription is/i)
})

test('F2: who takes slowly but steadily stays, with its pong behind what it is taking', () => {
  const { feeds, socket } = open()
  socket.says({})
  socket.takes = false
  for (let n = 0; n < 200; n += 1) publish(feeds, 'door', `zone-${n}`, 1)
  for (let second = 0; second < 120; second += 1) {
    socket.bufferedAmount = 1_000_000
    feeds.look(second * 1_000)
    if (second % 15 === 0) feeds.ping()
    // something leaves, and as much is behind it
    socket.trickle()
  }
  expect([socket.closed, feeds.numbers.stalled]).toEqual([0, 0])
})

test('a camera that was quiet while others were not has no gap', () => {
  const { feeds, socket } = open()
  socket.says({})
  publish(feeds, 'door', 'a', 1, 3)
  const place = String(socket.texts.at(-1)?.['resume'])
  for (let seq = 1; seq <= 9_000; seq += 1) publish(feeds, 'gate', 'a', seq, 0)
  const again = new FakeSocket()
  feeds.add(again as never, wire)
  again.says({ resume: [place] })
  expect(again.texts.some(({ kind }) => kind === 'gap')).toBe(false)
  again.says({ resume: ['0:2'] })
  expect(again.texts.some(({ kind }) => kind === 'gap')).toBe(true)
})
