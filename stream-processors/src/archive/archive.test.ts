import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { BusRecord } from '../chain/stage.ts'
import { append, closeByDay, closeMarkers, type OpenFile } from './archive.ts'
import { decodeContainer, encodeContainer } from './container.ts'

const day = 86_400_000
const recordAt = (offset: number, timestamp = 0): BusRecord => ({
  topic: 't',
  partition: 1,
  offset,
  timestamp,
  key: `k${offset}`,
  headers: { a: 'b' },
  value: Buffer.from([offset & 255]),
})

const fileOf = (from: number, records: readonly BusRecord[]): OpenFile => ({ from, records, bytes: records.reduce((sum, { value }) => sum + value.length, 0) })

/** Files of records read from `from` on, as the processor would cut them. */
function filesOf(records: readonly BusRecord[], from: number, every: number): (OpenFile & { until: number })[] {
  const files: (OpenFile & { until: number })[] = []
  let open = fileOf(from, [])
  for (const record of records) {
    const added = append(open, record, every)
    if (added.closed) files.push(added.closed)
    open = added.open
  }
  return files
}

test('wherever reading begins again, files end at the same places and hold each record once', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: 1, max: 15 }), fc.integer({ min: 0, max: day })), { maxLength: 60 }), fc.nat(), (steps, pick) => {
      let offset = -1
      let at = 0
      const records = steps.map(([skip, later]) => {
        offset += skip
        at += later
        return recordAt(offset, at)
      })
      const files = filesOf(records, 0, 10)
      // without gaps, each record once, in order
      files.forEach((file, index) => {
        expect(file.from).toBe(files[index - 1]?.until ?? 0)
        for (const record of file.records) {
          expect(record.offset).toBeGreaterThanOrEqual(file.from)
          expect(record.offset).toBeLessThan(file.until)
        }
        expect(new Set(file.records.map(({ timestamp }) => Math.floor(timestamp / day))).size).toBeLessThanOrEqual(1)
      })
      expect(files.flatMap((file) => file.records)).toEqual(
        records.slice(
          0,
          files.reduce((sum, file) => sum + file.records.length, 0),
        ),
      )
      // a restart reads on from a file's end
      const start = files.length > 0 ? files[pick % files.length] : undefined
      if (!start) return
      expect(
        filesOf(
          records.filter((record) => record.offset >= start.from),
          start.from,
          10,
        ),
      ).toEqual(files.slice(files.indexOf(start)))
    }),
  )
})

test('a day that is over ends a file, though nothing more comes', () => {
  const open = fileOf(3, [recordAt(5, day - 1)])
  expect(closeByDay(open, day + 1)).toBeUndefined()
  expect(closeByDay(open, day + 700_000)).toMatchObject({ from: 3, until: 6 })
  expect(closeByDay(fileOf(3, []), 9 * day)).toBeUndefined()
})

test('records that are large end a file early, and a single one is never too large', () => {
  const large = (offset: number): BusRecord => ({ ...recordAt(offset), value: Buffer.alloc(9_000_000) })
  const files = filesOf([recordAt(0), large(1), large(2), { ...recordAt(3), value: Buffer.alloc(50_000_000) }, recordAt(4), recordAt(100)], 0, 100)
  expect(files.map(({ from, until }) => [from, until])).toEqual([
    ...[
      [0, 2],
      [2, 3],
      [3, 4],
      [4, 100],
    ],
  ])
})

test('markers behind the last file are told from records that the broker deleted', () => {
  expect(closeMarkers(fileOf(6, []), 7)).toMatchObject({ from: 6, until: 7, records: [] })
  expect(closeMarkers(fileOf(6, []), 6)).toBeUndefined()
  expect(closeMarkers(fileOf(6, [recordAt(7)]), 9)).toBeUndefined()
})

test('a file that ended with its day and was not indexed is written again as it was, whatever came behind it meanwhile', () => {
  const open = fileOf(3, [recordAt(5, day - 1)])
  const byDay = closeByDay(open, day + 700_000)
  for (const next of [7, 9, 10, 43]) expect(append(open, recordAt(next, day + 1), 10).closed, `before ${next}`).toEqual(byDay)
})

test('offsets that hold nothing but markers, however many, make no files and no depth of calls', () => {
  const files = filesOf([recordAt(2), recordAt(1_000_000_000), recordAt(1_000_000_010)], 0, 10)
  expect(files.map(({ from, until, records }) => [from, until, records.length])).toEqual([
    [0, 10, 1],
    [10, 1_000_000_010, 1],
  ])
})

test('a file written twice is the same to the byte, and read back gives the records', async () => {
  const odd: BusRecord = { ...recordAt(41), key: Buffer.from([0xff, 0]).toString(), keyBytes: Buffer.from([0xff, 0]), value: Buffer.alloc(100_000, 7), headers: {} }
  const records = [recordAt(17, 5), recordAt(18, 6), odd]
  const place = { topic: 't', partition: 1, from: 10 }
  const bytes = await encodeContainer(place, 50, records)
  expect((await encodeContainer(place, 50, records)).equals(bytes)).toBe(true)
  expect(await decodeContainer(place, bytes)).toEqual(records)
  expect(bytes.subarray(0, 4).toString('latin1')).toBe('Obj\x01')
})

test('an archive with damaged bytes is refused', async () => {
  const place = { topic: 't', partition: 1, from: 10 }
  const bytes = await encodeContainer(place, 50, [recordAt(17)])
  await expect(decodeContainer(place, bytes.subarray(0, bytes.length - 9))).rejects.toMatchObject({ code: 'OBJECT_CONFLICT' })
})
