import { expect, test } from 'vitest'
import { type BothAnswered, judgeProbation } from './probation.ts'

/** A street that is empty three times out of four. */
const asked = (count: number, answers: (truth: string, at: number) => Partial<BothAnswered>): BothAnswered[] =>
  Array.from({ length: count }, (_, at) => {
    const truth = at % 4 === 0 ? 'occupied' : 'empty'
    return { zone: 'a', truth, before: truth, beforeMs: 1, now: truth, nowMs: 1, ...answers(truth, at) }
  })

const judge = (all: readonly BothAnswered[]) => judgeProbation(all, all)

test('one that is as good stays', () => {
  expect(judge(asked(200, () => ({})))).toMatchObject({ kind: 'fine' })
  expect(judge(asked(200, (_, at) => (at % 50 === 0 ? { now: 'empty' } : at % 50 === 1 ? { before: 'occupied' } : {})))).toMatchObject({ kind: 'fine' })
})

test('one that always says what is most frequent goes back, though it is right three times out of four', () => {
  expect(judge(asked(200, () => ({ now: 'empty' })))).toEqual({
    kind: 'back',
    why: '50.0 % balanced accuracy against 100.0 % of the one before on the same 200 labelled answers',
  })
})

test('a few frames, and a difference that may be chance, prove nothing', () => {
  expect(judge(asked(59, () => ({ now: 'empty' })))).toMatchObject({ kind: 'too few' })
  expect(judge(asked(200, () => ({ now: 'empty', truth: null })))).toMatchObject({ kind: 'too few' })
  expect(judge(asked(60, (_, at) => (at < 5 ? { now: 'other' } : {})))).toMatchObject({ kind: 'fine' })
})

test('one that leaves frames unanswered goes back, once both have surely been loaded', () => {
  const silent = asked(100, (_, at) => (at % 2 === 0 ? { now: null, nowMs: null } : {}))
  expect(judge(silent)).toEqual({ kind: 'back', why: 'it has left 50 of 100 questions unanswered' })
  expect(judgeProbation(silent, silent.slice(0, 20))).toMatchObject({ kind: 'too few' })
})

test('one that is many times slower goes back', () => {
  expect(judge(asked(100, () => ({ nowMs: 30, truth: null })))).toEqual({ kind: 'back', why: 'it takes 30.0 ms, the one before 1.0 ms' })
  expect(judge(asked(100, () => ({ nowMs: 8 }))), 'by a little').toMatchObject({ kind: 'fine' })
})
