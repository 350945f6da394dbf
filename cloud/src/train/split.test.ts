import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Placed, splitByPassage } from './split.ts'

/** Ten frames a second of each run: [label, seconds]. */
const footage = (zone: string, runs: readonly (readonly [label: string, seconds: number])[]): Placed[] => {
  let at = 0
  return runs.flatMap(([label, seconds]) =>
    Array.from({ length: seconds * 10 }, () => {
      at += 100
      return { cameraId: 'c', zone, label, at }
    }),
  )
}

test('passages are held out whole, and their neighbours are in neither part', () => {
  const examples = footage('z', [
    ['empty', 20],
    ['occupied', 3],
    ['empty', 20],
    ['occupied', 3],
    ['empty', 20],
  ])
  const { train, heldOut, judged } = splitByPassage(examples)
  expect(judged).toEqual(['c z'])
  for (const held of heldOut) for (const used of train) expect(Math.abs((examples[held]?.at ?? 0) - (examples[used]?.at ?? 0))).toBeGreaterThanOrEqual(2_000)
  for (const part of [train, heldOut]) expect(new Set(part.map((index) => examples[index]?.label))).toEqual(new Set(['empty', 'occupied']))
})

test('a zone whose class passes only once is trained on and said to be not judged', () => {
  const { heldOut, train, notJudged } = splitByPassage(
    footage('z', [
      ['empty', 30],
      ['occupied', 3],
    ]),
  )
  expect(notJudged).toEqual(['c z'])
  expect(heldOut).toEqual([])
  expect(train).toHaveLength(330)
})

test('what was held out stays held out when more has been captured, so that a champion is judged on what it has not learned', () => {
  const passages = Array.from({ length: 24 }, (_, at) => [at % 2 ? 'occupied' : 'empty', 8] as const)
  const before = footage('z', passages.slice(0, 17))
  const after = footage('z', passages)
  const [first, second] = [splitByPassage(before), splitByPassage(after)]
  const learned = new Set(first.train.map((index) => before[index]?.at))
  // the passage that was going on when it was cut may be cut otherwise
  const settled = second.heldOut.map((index) => after[index]?.at ?? 0).filter((at) => at < (before.at(-1)?.at ?? 0) - 10_000)
  expect(settled.length).toBeGreaterThan(50)
  expect(settled.filter((at) => learned.has(at))).toEqual([])
})

test('what was held out stays so when the oldest is left out, and when older footage is labelled later', () => {
  const all = footage(
    'z',
    Array.from({ length: 40 }, (_, at) => [at % 2 ? 'occupied' : 'empty', 7] as const),
  )
  const later = all.filter(({ at }) => at > 90_000)
  const [whole, part] = [splitByPassage(all), splitByPassage(later)]
  const learned = new Set(whole.train.map((index) => all[index]?.at))
  const settled = part.heldOut.map((index) => later[index]?.at ?? 0).filter((at) => at > 100_000)
  expect(settled.length).toBeGreaterThan(100)
  expect(settled.filter((at) => learned.has(at))).toEqual([])
  const share = whole.heldOut.length / all.length
  expect(share).toBeGreaterThan(0.1)
  expect(share).toBeLessThan(0.4)
})

test('a camera that takes one picture a second is judged too', () => {
  const examples = footage('z', [
    ['empty', 40],
    ['occupied', 30],
    ['empty', 40],
    ['occupied', 30],
  ]).filter((_, at) => at % 10 === 0)
  expect(splitByPassage(examples).judged).toEqual(['c z'])
})

test('two short passages close together leave the class in training, and the zone is said to be not judged', () => {
  const examples = footage('z', [
    ['empty', 20],
    ['occupied', 1],
    ['empty', 1],
    ['occupied', 1],
    ['empty', 20],
  ])
  const { train, heldOut, notJudged } = splitByPassage(examples)
  expect(notJudged).toEqual(['c z'])
  expect(heldOut).toEqual([])
  expect(train).toHaveLength(examples.length)
})

test('no example is in both parts, every class is learned, and the order of the examples does not matter', () => {
  const run = fc.tuple(fc.constantFrom('empty', 'occupied'), fc.integer({ min: 1, max: 12 }))
  fc.assert(
    fc.property(fc.array(run, { minLength: 1, maxLength: 12 }), fc.nat(), (runs, seed) => {
      const examples = footage('z', runs)
      const { train, heldOut, judged } = splitByPassage(examples)
      expect(heldOut.filter((index) => train.includes(index))).toEqual([])
      const labelsOf = (part: readonly number[]) => new Set(part.map((index) => examples[index]?.label))
      const all = new Set(examples.map(({ label }) => label))
      expect(labelsOf(train)).toEqual(all)
      if (judged.length > 0) expect(labelsOf(heldOut)).toEqual(all)
      const shuffled = examples.map((example, at) => ({ example, key: (at * 7919 + seed) % 10_007 })).sort((a, b) => a.key - b.key)
      const again = splitByPassage(shuffled.map(({ example }) => example))
      const times = (indexes: readonly number[], list: readonly Placed[]) => indexes.map((index) => list[index]?.at ?? 0).sort((a, b) => a - b)
      expect(
        times(
          again.heldOut,
          shuffled.map(({ example }) => example),
        ),
      ).toEqual(times(heldOut, examples))
    }),
  )
})
