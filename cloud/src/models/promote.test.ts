import { expect, test } from 'vitest'
import type { Evaluation } from '../train/evaluate.ts'
import { mayReplace, unlessDecided } from './promote.ts'

const judged = (balancedAccuracy: number, n = 100) => ({ n, balancedAccuracy }) as Evaluation

test('who is as good as the champion on the same frames replaces it, who is worse does not', () => {
  expect(mayReplace(judged(0.9), judged(0.9), false, '')).toMatchObject({ promote: true })
  expect(mayReplace(judged(0.89), judged(0.9), false, '')).toMatchObject({ promote: false })
  expect(mayReplace(judged(0), judged(0.9), true, '')).toMatchObject({ promote: true })
})

test('who has learned about one camera only takes no place of one that answers for others too, unless somebody insists', () => {
  expect(mayReplace(judged(1), judged(0.9), false, '', ['yard left', 'yard right'])).toEqual({
    promote: false,
    reason: 'it has learned nothing about yard left, yard right, which the champion answers for',
  })
  expect(mayReplace(judged(1), judged(0.9), true, '', ['yard left'])).toMatchObject({ promote: true })
})

test('a champion whose files are gone is replaced, and said to be', () => {
  expect(mayReplace(judged(0.9), 'gone', false, '')).toMatchObject({ promote: true, reason: expect.stringContaining("the champion's files are gone") as unknown })
})

test('whom somebody made champion while a model was trained is not replaced without having been compared with it', () => {
  const better = { promote: true, reason: 'better' }
  expect(unlessDecided(better, '3', '3', false)).toBe(better)
  expect(unlessDecided(better, undefined, undefined, false)).toBe(better)
  expect(unlessDecided(better, '3', '5', false)).toEqual({
    promote: false,
    reason: 'version 5 became champion while this one was trained, which was compared with version 3',
  })
  // who forces it has seen the figures, or wants none
  expect(unlessDecided(better, '3', '5', true)).toBe(better)
})

test('a champion of another preprocessing is not replaced by what could not be judged itself', () => {
  expect(mayReplace(judged(0, 0), 'not comparable', false, '')).toMatchObject({ promote: false })
  expect(mayReplace(judged(0.9), 'not comparable', false, '')).toMatchObject({
    promote: true,
    reason: 'the first model of its preprocessing, 90.0 % balanced accuracy on 100 held-out examples',
  })
  expect(mayReplace(judged(0, 0), undefined, false, '')).toMatchObject({ promote: true })
})
