import fc from 'fast-check'
import { expect, test } from 'vitest'
import { addSeq, type Ranges } from './seen-seqs.ts'

test('each number is new exactly once, in any order, and the ranges stay minimal', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 40 })), (numbers) => {
      let seen: Ranges = []
      const known = new Set<number>()
      for (const number of numbers) {
        const added = addSeq(seen, number)
        expect(added.isNew).toBe(!known.has(number))
        known.add(number)
        seen = added.seen
      }
      const covered = seen.flatMap(([from, to]) => Array.from({ length: to - from + 1 }, (_, at) => from + at))
      expect(covered).toEqual([...known].sort((a, b) => a - b))
      seen.slice(1).forEach(([from], at) => {
        expect(from).toBeGreaterThan((seen[at]?.[1] ?? 0) + 1)
      })
    }),
  )
})
