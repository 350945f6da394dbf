import { expect, test } from 'vitest'
import { cutAtWaiting, nextOffsets } from './run-stage.ts'
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
