import fc from 'fast-check'
import { expect, test } from 'vitest'
import { account, type EpochFacts, type OpenMedia, type Sums } from './ledger.ts'

const nothing: Sums = { validated: 0, rejected: 0, lost: 0, erased: 0, framesStated: 0, framesPrepared: 0, framesRejected: 0 }
const aMedia = (seq: number, changes: Partial<OpenMedia> = {}): OpenMedia => ({
  seq,
  state: 'extracted',
  framesStated: 1,
  framesPrepared: 1,
  framesRejected: 0,
  recordedAt: 1_000,
  ...changes,
})
const facts = (changes: Partial<EpochFacts>): EpochFacts => ({
  highestSeq: 0,
  forgottenSeq: 0,
  settledSeq: 0,
  settled: nothing,
  media: [],
  losses: [],
  now: 100_000,
  reportedAt: 99_000,
  framesPerSecond: 0,
  ...changes,
})

test('L1: a record that was announced and is nowhere is open, however much came after it', () => {
  const { open, openMedia, settledSeq } = account(facts({ highestSeq: 4, forgottenSeq: 4, media: [aMedia(1), aMedia(2), aMedia(4)] }))
  expect(openMedia).toBe(1)
  expect(open).toEqual([{ from: 3, to: 3, waitsFor: 'nothing: it was announced and never arrived', age: 99_000 }])
  expect(settledSeq).toBe(2)
})

test('L3: what the agent has not sent yet waits in its spool, and what it gave up is lost', () => {
  const { open, sums } = account(facts({ highestSeq: 5, forgottenSeq: 3, media: [aMedia(1)], losses: [{ from: 2, to: 3, reason: 'evicted' }] }))
  expect(sums.lost).toBe(2)
  expect(open).toEqual([{ from: 4, to: 5, waitsFor: 'the agent to send it from its spool', age: 1_000 }])
})

test('L3: what waits in the spool ages, though the agent reports all the while', () => {
  const { open } = account(facts({ highestSeq: 301, framesPerSecond: 5 }))
  expect(open).toEqual([{ from: 1, to: 301, waitsFor: 'the agent to send it from its spool', age: 61_000 }])
})

test('frames that extract stated and features did not prepare are open', () => {
  const { open, openFrames, sums } = account(facts({ highestSeq: 1, forgottenSeq: 1, media: [aMedia(1, { framesStated: 4, framesPrepared: 2, framesRejected: 1 })] }))
  expect(openFrames).toBe(1)
  expect(sums).toMatchObject({ framesStated: 4, framesPrepared: 2, framesRejected: 1 })
  expect(open[0]?.waitsFor).toBe('features')
})

test('L2: going on from what is settled gives the sums of counting everything', () => {
  const anyMedia = fc.uniqueArray(
    fc.record({ seq: fc.integer({ min: 1, max: 40 }), state: fc.constantFrom('captured', 'validated', 'rejected', 'extracted'), missing: fc.integer({ min: 0, max: 1 }) }),
    { selector: ({ seq }) => seq },
  )
  fc.assert(
    fc.property(anyMedia, fc.integer({ min: 1, max: 45 }), fc.array(fc.integer({ min: 1, max: 45 }), { maxLength: 3 }), (drawn, highestSeq, lost) => {
      const media = drawn.map(({ seq, state, missing }) => aMedia(seq, { state: state as OpenMedia['state'], framesPrepared: 1 - missing })).sort((a, b) => a.seq - b.seq)
      const all = facts({ highestSeq, forgottenSeq: highestSeq, media, losses: lost.map((seq) => ({ from: seq, to: seq, reason: seq % 2 === 0 ? 'evicted' : 'erased' })) })
      const whole = account(all)
      const { validated, rejected, lost: lostCount, erased } = whole.sums
      expect(validated + rejected + lostCount + erased + whole.openMedia).toBe(highestSeq)
      const { framesStated, framesPrepared, framesRejected } = whole.sums
      expect(framesPrepared + framesRejected + whole.openFrames).toBe(framesStated)
      const later = account({ ...all, settledSeq: whole.settledSeq, settled: whole.settled, media: media.filter(({ seq }) => seq > whole.settledSeq) })
      expect(later.sums).toEqual(whole.sums)
      expect(later.openMedia).toBe(whole.openMedia)
    }),
  )
})

test('L4: what was erased counts as erased, whatever it was before, and its frames no more', () => {
  const { sums, open } = account(
    facts({ highestSeq: 3, forgottenSeq: 3, media: [aMedia(1), aMedia(2), aMedia(3, { state: 'rejected' })], losses: [{ from: 2, to: 3, reason: 'erased' }] }),
  )
  expect(sums).toMatchObject({ validated: 1, rejected: 0, erased: 2, framesStated: 1, framesPrepared: 1 })
  expect(open).toEqual([])
})
