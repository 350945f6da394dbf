import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Loss, Losses, unpackLosses } from './losses.ts'

const range = fc.record({ seqFrom: fc.integer({ min: 1, max: 60 }), length: fc.integer({ min: 1, max: 9 }), isTold: fc.boolean(), epoch: fc.constantFrom('e', 'f') })
const seqsOf = (losses: readonly Loss[]): string[] =>
  losses.flatMap(({ epoch, seqFrom, seqTo }) => Array.from({ length: seqTo - seqFrom + 1 }, (_, n) => `${epoch} ${seqFrom + n}`))

test('ranges hold exactly what was lost and not told, as few as can be, also packed and unpacked', () => {
  fc.assert(
    fc.property(fc.array(range, { maxLength: 40 }), (steps) => {
      const losses = new Losses()
      const expected = new Set<string>()
      for (const { seqFrom, length, isTold, epoch } of steps) {
        const loss: Loss = { cameraId: 'door', epoch, seqFrom, seqTo: seqFrom + length - 1, reason: 'evicted', lostAt: seqFrom }
        if (isTold) losses.remove(loss)
        else losses.add(loss)
        for (const seq of seqsOf([loss])) isTold ? expected.delete(seq) : expected.add(seq)
      }
      expect(new Set(seqsOf(losses.all))).toEqual(expected)
      expect(seqsOf(losses.all)).toHaveLength(expected.size)
      for (const { epoch, seqTo } of losses.all) expect(expected.has(`${epoch} ${seqTo + 1}`)).toBe(false)
      expect(new Set(seqsOf(losses.pack().flatMap(unpackLosses)))).toEqual(expected)
      const whole: Loss = { cameraId: 'door', epoch: 'e', seqFrom: 1, seqTo: 70, reason: 'unreadable', lostAt: 0 }
      expect(new Set(seqsOf(losses.missing(whole)))).toEqual(new Set(seqsOf([whole]).filter((seq) => !expected.has(seq))))
    }),
  )
})

test('every second frame of a day at ten pictures a second is packed into less than two megabytes', () => {
  const losses = new Losses()
  for (let seq = 1; seq < 864_000; seq += 2) losses.add({ cameraId: 'door', epoch: 'e', seqFrom: seq, seqTo: seq, reason: 'evicted', lostAt: 1 })
  expect(JSON.stringify(losses.pack()).length).toBeLessThan(2_000_000)
  expect(losses.first(3).map(({ seqFrom }) => seqFrom)).toEqual([1, 3, 5])
})
