import { expect, test } from 'vitest'
import type { Outcome } from '../chain/stage.ts'
import { remember } from './validate.ts'

const accepted: Outcome = { kind: 'emit', outputs: [] }
const refused: Outcome = { kind: 'reject', reason: 'PICTURE_UNREADABLE', message: 'damaged' }

test('an announcement that comes again leaves nothing behind, whether it was accepted or refused', () => {
  const first = remember(accepted, 1, 0, undefined)
  const second = remember(refused, 2, 0, first.remember)
  expect(remember(refused, 1, 0, second.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
  expect(remember(refused, 2, 0, second.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
})

test('what was refused is judged again once each time it is sent again, and never after it was accepted', () => {
  const first = remember(refused, 7, 0, undefined)
  const again = remember(refused, 7, 1, first.remember)
  expect(again.outcome).toBe(refused)
  expect(remember(refused, 7, 1, again.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
  const third = remember(accepted, 7, 2, again.remember)
  expect(third.outcome).toBe(accepted)
  expect(remember(refused, 7, 3, third.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
  expect(third.remember.refused).toEqual({})
})
