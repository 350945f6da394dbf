import { expect, test } from 'vitest'
import { type ArchiveFile, planReading, spansOf } from './history.ts'

const file = (from_offset: number, until_offset: number): ArchiveFile => ({
  topic: 't',
  partition: 0,
  from_offset,
  until_offset,
  bucket: 'b',
  object_key: `k${from_offset}`,
  sha256: '',
})
const files = [file(0, 10), file(10, 20), file(20, 30)]
const range = (from: number, until: number) => ({ topic: 't', partition: 0, from, until })

test.each([
  ['all of it in Kafka', range(22, 28), 5, [], 22],
  ['all of it in the archive', range(2, 18), 100, [0, 10], 18],
  ['older in the archive, newer in Kafka', range(5, 40), 25, [0, 10, 20], 25],
  ['the topic is gone', range(12, 15), undefined, [10], 15],
])('%s', (_, wanted, low, used, kafkaFrom) => {
  const { files: found, kafka } = planReading(wanted, low === undefined ? undefined : { from: low }, files)
  expect(found.map(({ from_offset }) => from_offset)).toEqual(used)
  expect(kafka).toEqual({ ...wanted, from: kafkaFrom })
})

test.each([
  ['before the archive begins', range(0, 5), [file(3, 10)], 'Offsets 0 to 4'],
  ['between two files', range(5, 25), [file(0, 10), file(15, 30)], 'Offsets 10 to 24'],
  ['between the archive and Kafka', range(25, 60), files, 'Offsets 30 to 49'],
])('what lies nowhere is said: %s', (_, wanted, there, message) => {
  expect(() => planReading(wanted, { from: 50 }, there)).toThrow(message)
})

test('a gap in the archive costs what lies in it, and nothing beside it', () => {
  expect(spansOf([file(5, 10), file(10, 20), file(25, 40)], 30)).toEqual({
    held: [
      { from: 5, until: 20 },
      { from: 25, until: 30 },
    ],
    gaps: [
      { from: 0, until: 5 },
      { from: 20, until: 25 },
    ],
  })
  expect(spansOf([], 0)).toEqual({ held: [], gaps: [] })
  expect(spansOf([], 7)).toEqual({ held: [], gaps: [{ from: 0, until: 7 }] })
  expect(spansOf([file(0, 50)], 7)).toEqual({ held: [{ from: 0, until: 7 }], gaps: [] })
})
