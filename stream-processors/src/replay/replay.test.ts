import { expect, test } from 'vitest'
import type { BusRecord } from '../chain/stage.ts'
import { belongs, mergeByTime, paceOf, type ReplayRequest } from './replay.ts'

const record = (camera: string, at: number): BusRecord => ({
  topic: 't',
  partition: 0,
  offset: at,
  timestamp: 0,
  key: camera,
  headers: { ce_time: new Date(at).toISOString() },
  value: Buffer.alloc(0),
})
const request: ReplayRequest = { topic: 't', from: 1_000, to: 2_000, cameras: ['a', 'b'], task: null, speed: null, preprocessing: null }

test('a record belongs by its event time, from inclusive to exclusive, and by its camera', () => {
  expect([record('a', 1_000), record('b', 1_999), record('a', 2_000), record('a', 999), record('c', 1_500)].map((one) => belongs(one, request))).toEqual([
    true,
    true,
    false,
    false,
    false,
  ])
  expect(belongs(record('c', 1_500), { ...request, cameras: null })).toBe(true)
  expect(belongs({ ...record('a', 1_500), headers: {} }, request)).toBe(false)
})

test('ten times real time keeps a tenth of the distance, and never waits for what is late', () => {
  const pace = paceOf(10)
  expect(pace(50_000, 7)).toBe(0)
  expect(pace(60_000, 7)).toBe(1_000)
  expect(pace(60_000, 5_000)).toBe(0)
  expect(paceOf(null)(1e12, 0)).toBe(0)
})

test('partitions are merged in the order of event time, each in its own order', async () => {
  async function* stream(camera: string, ...times: readonly number[]): AsyncGenerator<BusRecord> {
    for (const at of times) yield record(camera, at)
  }
  const merged: number[] = []
  for await (const { offset } of mergeByTime([stream('a', 1, 4, 9), stream('b', 2, 3, 10), stream('c')])) merged.push(offset)
  expect(merged).toEqual([1, 2, 3, 4, 9, 10])
})
