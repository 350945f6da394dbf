import { expect, test } from 'vitest'
import { evaluate, figuresOf } from './evaluate.ts'

const judged = (zone: string, counts: Readonly<Record<string, number>>) =>
  Object.entries(counts).flatMap(([pair, n]) => Array.from({ length: n }, () => ({ zone, truth: pair.split('>')[0] ?? '', answer: pair.split('>')[1] ?? '' })))

test('figures are those of the confusion matrix', () => {
  const figures = figuresOf(judged('z', { 'a>a': 80, 'a>b': 10, 'b>b': 6, 'b>a': 4 }))
  expect(figures).toMatchObject({ n: 100, accuracy: 0.86, majorityAccuracy: 0.9, confusion: { a: { a: 80, b: 10 }, b: { a: 4, b: 6 } } })
  expect(figures.balancedAccuracy).toBeCloseTo((80 / 90 + 6 / 10) / 2)
  expect(figures.precision['b']).toBeCloseTo(6 / 16)
})

test('always saying the majority is half right, however many examples it has', () => {
  expect(figuresOf(judged('z', { 'a>a': 990, 'b>a': 10 })).balancedAccuracy).toBe(0.5)
})

test('a busy zone does not hide a quiet one', () => {
  const found = evaluate([...judged('busy', { 'a>a': 500, 'b>b': 500 }), ...judged('quiet', { 'a>a': 5, 'b>a': 5 })])
  expect(found.balancedAccuracy).toBe(0.75)
})
