import { expect, test } from 'vitest'
import { cutAtWaiting, nextLimit, nextOffsets } from './run-stage.ts'
import type { BusRecord, Outcome } from './stage.ts'

const aRecord = (partition: number, offset: number): BusRecord => ({ topic: 't', partition, offset, timestamp: 0, key: 'k', value: Buffer.alloc(0), headers: {} })
const emit: Outcome = { kind: 'emit', outputs: [] }
const retry: Outcome = { kind: 'retry', cause: new Error('later') }

test('R5: a record that must wait holds back what comes after it in its partition, and nothing else', () => {
  const worked = [
    { record: aRecord(0, 1), outcome: emit },
    { record: aRecord(0, 2), outcome: retry },
    { record: aRecord(1, 7), outcome: emit },
    { record: aRecord(0, 3), outcome: emit },
  ]
  const { settled, waiting } = cutAtWaiting(worked)
  expect(settled.map(({ record }) => `${record.partition}:${record.offset}`)).toEqual(['0:1', '1:7'])
  expect(waiting).toEqual([{ topic: 't', partition: 0, offset: 2 }])
})

test('offsets are one past the last record of each partition', () => {
  expect(nextOffsets([aRecord(0, 4), aRecord(1, 9), aRecord(0, 6)])).toEqual([
    { topic: 't', partition: 0, offset: 7 },
    { topic: 't', partition: 1, offset: 10 },
  ])
})

test('R7: batches grow and shrink towards what gets done in 100 ms, and never beyond their bytes', () => {
  const settle = (from: number, costPerRecord: number, bytesPerRecord: number): number => {
    let limit = from
    for (let round = 0; round < 20; round += 1) limit = nextLimit(limit, limit, limit * bytesPerRecord, 8 + limit * costPerRecord)
    return limit
  }
  // 8 ms of each batch are its commit
  expect(settle(128, 1, 500)).toBeGreaterThanOrEqual(90)
  expect(settle(128, 1, 500)).toBeLessThanOrEqual(95)
  expect(settle(128, 0.03, 500)).toBe(1_024)
  expect(settle(128, 50, 500)).toBe(16)
  expect(settle(128, 0.03, 60_000)).toBe(266)
  expect(settle(128, 0.03, 8_000_000)).toBe(2)
  // a batch that was small because nothing more was there says nothing
  expect(nextLimit(128, 3, 1_500, 9)).toBe(128)
  expect(nextLimit(128, 128, 64_000, 10_000)).toBe(64)
})
