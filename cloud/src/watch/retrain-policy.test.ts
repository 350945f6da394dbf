import { expect, test } from 'vitest'
import { judgeQuality, liveFigures, retrainRule } from './retrain-policy.ts'

const bad = { n: 200, accuracy: 0.7, balancedAccuracy: 0.6, classes: 2 }
const idle = { running: false, lastRequest: undefined }

test('bad answers ask for training once', () => {
  expect(judgeQuality(bad, idle, 1_000_000)).toMatchObject({ kind: 'retrain', why: '60.0 % balanced accuracy over the last 200 labelled answers, below 85 %' })
  expect(judgeQuality(bad, { running: true, lastRequest: 999_000 }, 1_000_000).kind).toBe('running')
  expect(judgeQuality(bad, { running: false, lastRequest: 999_000 }, 1_000_000).kind).toBe('cooling down')
  expect(judgeQuality(bad, { running: false, lastRequest: 1_000_000 - retrainRule.coolDown }, 1_000_000).kind).toBe('retrain')
})

test('what training does not mend is asked for ever more seldom', () => {
  const after = (inVain: number, since: number) => judgeQuality(bad, { running: false, lastRequest: 0, inVain }, since).kind
  const { coolDown, longestCoolDown } = retrainRule
  expect([after(1, coolDown), after(2, coolDown), after(2, 2 * coolDown), after(4, 8 * coolDown - 1), after(4, 8 * coolDown)]).toEqual([
    ...['retrain', 'cooling down', 'retrain', 'cooling down', 'retrain'],
  ])
  expect(after(50, longestCoolDown)).toBe('retrain')
})

test('few answers, or answers of one class only, prove nothing', () => {
  expect(judgeQuality({ ...bad, n: 59 }, idle, 0).kind).toBe('too few')
  expect(judgeQuality({ ...bad, classes: 1 }, idle, 0).kind).toBe('too few')
})

test('good answers are left alone', () => {
  expect(judgeQuality({ ...bad, balancedAccuracy: 0.85 }, idle, 0).kind).toBe('fine')
})

test('one wrong answer about a class that hardly occurs asks for no training', () => {
  const judged = [...Array.from({ length: 239 }, () => ({ zone: 'z', truth: 'empty', answer: 'empty' })), { zone: 'z', truth: 'occupied', answer: 'empty' }]
  expect(judgeQuality(liveFigures(judged), idle, 0)).toMatchObject({ kind: 'too few', why: '239 labelled answers of 1 classes; 60 of at least 2 are needed' })
  const often = [...judged, ...Array.from({ length: 9 }, () => ({ zone: 'z', truth: 'occupied', answer: 'empty' }))]
  expect(judgeQuality(liveFigures(often), idle, 0)).toMatchObject({ kind: 'retrain' })
})
