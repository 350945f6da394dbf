import { expect, test } from 'vitest'
import { beforeTrying, began, isSuspicious, type Note } from './attempts.ts'

test('beginning where it began before, again and again, is suspicious; going on is not', () => {
  let note: Note | undefined
  for (const offset of [10, 20, 20]) note = began(note, offset)
  expect(isSuspicious(note)).toBe(false)
  note = began(note, 20)
  expect(isSuspicious(note)).toBe(true)
  expect(isSuspicious(began(note, 21))).toBe(false)
})

test('a record that kills the process three times on its own is given up, the ones before it are not', () => {
  let note: Note = { offset: 20, starts: 3 }
  const tryIt = (offset: number): boolean => {
    const decided = beforeTrying(note, offset)
    if (!decided.giveUp) note = decided.note
    return decided.giveUp
  }
  expect(tryIt(20)).toBe(false)
  for (let death = 1; death <= 3; death += 1) {
    expect(tryIt(21)).toBe(false)
    // the process dies and begins again where it was
    note = began(note, 21)
    expect(isSuspicious(note)).toBe(true)
  }
  expect(tryIt(21)).toBe(true)
  expect(tryIt(22)).toBe(false)
})
