import { expect, test } from 'vitest'
import { championsLeft } from './roles.ts'

/** `v` is promoted, `<v` takes its place again. */
const left = (...history: readonly string[]) => championsLeft(history.map((text) => ({ version: text.replace('<', ''), is_rollback: text.startsWith('<') })))

test('a rollback that is repeated goes further back, and never returns to what was left', () => {
  expect(left('3', '4', '5')).toEqual(['5', '4', '3'])
  expect(left('3', '4', '5', '<4')).toEqual(['4', '3'])
  expect(left('3', '4', '5', '<4', '<3')).toEqual(['3'])
})

test('an older version that was promoted by hand gives its place back to the one it took it from', () => {
  expect(left('3', '4', '5', '3')).toEqual(['3', '5', '4', '3'])
  expect(left('3', '4', '5', '3', '<5')).toEqual(['5', '4', '3'])
  expect(left('3', '4', '<3', '5')).toEqual(['5', '3'])
  // as it went to and fro before rollbacks were told apart
  expect(left('3', '4', '5', '<4', '<5')).toEqual(['5', '4', '3'])
})
