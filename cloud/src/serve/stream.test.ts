import { PassThrough } from 'node:stream'
import { Fault } from '@frameloop/kit/fault'
import { expect, test, vi } from 'vitest'
import type { Slot } from '../models/model-slots.ts'
import type { Reply } from './engine.ts'
import { binaryMessage } from './messages.ts'
import { readBinary, type StreamSocket, serveStream } from './stream.ts'

interface Asked {
  readonly bytes: Uint8Array
  readonly deadline: number
  answer(scores: readonly number[]): void
  fail(fault: Fault): void
}

function open() {
  const said: Record<string, unknown>[] = []
  const asked: Asked[] = []
  let hear: (data: Buffer, isBinary: boolean) => void = () => {}
  let [isPaused, isTerminated, pings] = [false, false, 0]
  let [left, pong] = [(): void => {}, (): void => {}]
  const socket = {
    bufferedAmount: 0,
    send: (text: string, whenLeft: () => void) => {
      said.push(JSON.parse(text) as Record<string, unknown>)
      left = whenLeft
    },
    terminate: () => {
      isTerminated = true
    },
    ping: () => {
      pings += 1
    },
    on: (event: string, handler: never) => {
      if (event === 'message') hear = handler
      if (event === 'pong') pong = handler
    },
    pause: () => {
      isPaused = true
    },
    resume: () => {
      isPaused = false
    },
  }
  const slot = { change: { digest: 'd', modelName: 'm', version: '3' }, model: { engine: 'onnxruntime', meta: { classes: ['a', 'b'] } } } as unknown as Slot
  serveStream(socket as unknown as StreamSocket, {
    engine: {
      ask: (_, bytes, deadline = 0) =>
        new Promise<Reply>((resolve, reject) =>
          asked.push({ bytes: bytes as Uint8Array, deadline, answer: (scores) => resolve({ scored: [{ scores }], predictMs: 1 }), fail: reject }),
        ),
    },
    championOf: (task) => {
      if (task !== 'street') throw new Fault('MODEL_UNAVAILABLE', `No model serves task ${task} yet`)
      return slot
    },
    answerOf: (_, scores) => ({ scores }),
    wire: new PassThrough(),
  })
  return {
    ...{ said, asked },
    text: (message: object | string) => hear(Buffer.from(typeof message === 'string' ? message : JSON.stringify(message)), false),
    picture: (about: object, bytes = 'x') => hear(binaryMessage(about, Buffer.from(bytes)), true),
    isPaused: () => isPaused,
    pings: () => pings,
    pong: () => pong(),
    isTerminated: () => isTerminated,
    /** So much of what was said has not left. */
    buffered: (bytes: number) => {
      socket.bufferedAmount = bytes
      left()
    },
  }
}
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

test('answers come in the order of the pictures, whichever is ready first, and one that fails in its place', async () => {
  const stream = open()
  stream.text({ task: 'street' })
  expect(stream.said[0]).toMatchObject({ kind: 'ready', modelVersion: '3', classes: ['a', 'b'], credit: 64 })
  for (const id of [1, 2, 3]) stream.picture({ id, camera: 'door', zone: 'a' }, `picture ${id}`)
  await settled()
  expect(Buffer.from(stream.asked[1]?.bytes ?? '').toString()).toBe('picture 2')
  stream.asked[2]?.answer([0.3])
  stream.asked[1]?.fail(new Fault('PICTURE_UNREADABLE', 'no picture'))
  await settled()
  expect(stream.said).toHaveLength(1)
  stream.asked[0]?.answer([0.1])
  await settled()
  expect(stream.said.slice(1)).toMatchObject([
    { kind: 'answer', id: 1, scores: [0.1], camera: 'door', zone: 'a' },
    { kind: 'error', id: 2, code: 'PICTURE_UNREADABLE' },
    { kind: 'answer', id: 3, scores: [0.3] },
  ])
})

test('G1: with 64 pictures unanswered nothing more is read, until one is answered', async () => {
  const stream = open()
  stream.text({ task: 'street', deadlineMs: 50 })
  for (let id = 0; id < 63; id += 1) stream.picture({ id })
  expect(stream.isPaused()).toBe(false)
  stream.picture({ id: 63, deadlineMs: 1_000 })
  expect(stream.isPaused()).toBe(true)
  await settled()
  expect((stream.asked[63]?.deadline ?? 0) - (stream.asked[0]?.deadline ?? 0)).toBeGreaterThan(900)
  stream.asked[0]?.answer([1])
  await settled()
  expect(stream.isPaused()).toBe(false)
})

test('G2: from whoever does not take the answers nothing more is read, whatever they say, and in the end they are closed', async () => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
  try {
    const stream = open()
    stream.text({ task: 'street' })
    stream.buffered(300_000)
    stream.text('no JSON')
    expect(stream.isPaused()).toBe(true)
    stream.buffered(1_000)
    expect(stream.isPaused()).toBe(false)
    vi.advanceTimersByTime(60_000)
    expect(stream.isTerminated()).toBe(false)
    // also by errors, which take a moment only
    stream.buffered(300_000)
    stream.picture({ colour: 'red' })
    await settled()
    expect(stream.isPaused()).toBe(true)
    vi.advanceTimersByTime(19_000)
    expect(stream.isTerminated()).toBe(false)
    vi.advanceTimersByTime(2_000)
    expect(stream.isTerminated()).toBe(true)
  } finally {
    vi.useRealTimers()
  }
})

test('G3: who answers no ping and says nothing is gone, and who does stays', () => {
  vi.useFakeTimers()
  try {
    const stream = open()
    vi.advanceTimersByTime(15_000)
    stream.pong()
    vi.advanceTimersByTime(15_000)
    stream.text({ task: 'street' })
    vi.advanceTimersByTime(15_000)
    expect([stream.pings(), stream.isTerminated()]).toEqual([3, false])
    vi.advanceTimersByTime(15_000)
    expect(stream.isTerminated()).toBe(true)
  } finally {
    vi.useRealTimers()
  }
})

test('what is wrong is said, and the stream goes on', async () => {
  const stream = open()
  stream.picture({ id: 'early' })
  stream.text('no JSON')
  stream.text({ task: 'other' })
  stream.text({ task: 'street', more: 1 })
  stream.text({ task: 'street' })
  stream.picture({ id: 1, colour: 'red' })
  await settled()
  // whoever asked knows which of their questions it was
  expect(stream.said.at(-1)).toMatchObject({ kind: 'error', id: 1 })
  expect(stream.said.map(({ kind, code }) => code ?? kind).sort()).toEqual([
    'MODEL_UNAVAILABLE',
    'REQUEST_INVALID',
    'REQUEST_INVALID',
    'REQUEST_INVALID',
    'REQUEST_INVALID',
    'ready',
  ])
})

test('the JSON before a picture may be left out, and must be whole', () => {
  expect(readBinary(Buffer.from([0, 0, 0, 0, 7, 8]))).toEqual({ about: {}, bytes: Buffer.from([7, 8]) })
  for (const wrong of [[], [0, 0], [0, 0, 0, 9, 123]]) expect(() => readBinary(Buffer.from(wrong))).toThrow(/begins with the length of its JSON/)
})
