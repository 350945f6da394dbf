import { expect, test } from 'vitest'
import { Rooms } from './rooms.ts'

test('memory that was given back is used again where it is large enough, and small or huge ones are not kept', () => {
  const rooms = new Rooms()
  const first = rooms.take(100_000)
  expect(first).toHaveLength(100_000)
  rooms.give(first.buffer)
  const second = rooms.take(140_000)
  expect([second.buffer === first.buffer, second.length, second.byteOffset]).toEqual([true, 140_000, 0])
  rooms.give(second.buffer)
  expect(rooms.take(200_000).buffer).not.toBe(first.buffer)
  for (const bytes of [10, 9_000_000]) {
    const taken = rooms.take(bytes)
    expect(taken).toHaveLength(bytes)
    rooms.give(taken.buffer)
    expect(rooms.take(bytes).buffer).not.toBe(taken.buffer)
  }
})
