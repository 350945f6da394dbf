import { expect, test } from 'vitest'
import type { Evaluation } from '../train/evaluate.ts'
import { mayReplace, unlessDecided } from './promote.ts'

const judged = (balancedAccuracy: number, n = 100) => ({ n, balancedAccuracy }) as Evaluation

test('who is as good as the champion on the same frames replaces it, who is worse does not', () => {
  expect(mayReplace(judged(0.9), judged(0.9), false, '')).toMatchObject({ promote: true })
  expect(mayReplace(judged(0.89), judged(0.9), false, '')).toMatchObject({ promote: false })
  expect(mayReplace(judged(0), judged(0.9), true, '')).toMatchObject({ promote: true })
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
