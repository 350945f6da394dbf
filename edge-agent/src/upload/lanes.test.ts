import { expect, test } from 'vitest'
import { AnnouncementQueue, backlogPlaces, backlogRest, openingAt, UploadQueue } from './lanes.ts'
import { freeAfter } from './uploader.ts'

const at = (capturedAt: number, cameraId = 'a') => ({ cameraId, head: { capturedAt } })
const minute = 60_000

test('live goes before what has waited, each lane in its order, and what has waited only where it may', () => {
  const queue = new UploadQueue<ReturnType<typeof at>>()
  queue.add([at(1), at(2)], 10 * minute)
  queue.add([at(10 * minute), at(10 * minute + 1)], 10 * minute)
  const taken = Array.from({ length: 5 }, () => queue.take(10 * minute, true)?.head.capturedAt)
  expect(taken).toEqual([10 * minute, 10 * minute + 1, 1, 2, undefined])
  queue.add([at(3), at(10 * minute + 2)], 10 * minute)
  queue.take(10 * minute, false)
  expect(queue.take(10 * minute, false)).toBeUndefined()
  expect(queue.take(10 * minute, true)).toEqual(at(3))
})

test('a clip is as new as its end, however long it is', () => {
  const queue = new UploadQueue<{ cameraId: string; head: { capturedAt: number; endedAt?: number } }>()
  const clip = { cameraId: 'a', head: { capturedAt: 0, endedAt: 2 * minute } }
  queue.add([at(minute), clip], 2 * minute)
  expect(queue.take(2 * minute, false)).toBe(clip)
  expect(queue.take(2 * minute, false)).toBeUndefined()
})

test('a window that ends when it begins is the whole day', () => {
  expect(openingAt(['00:00-00:00'], 'nothing', new Date(2026, 0, 1, 12, 30))).toBe('all')
})

test('what has waited takes one place while live frames come, most places when none do, and none outside its windows', () => {
  expect([backlogPlaces('all', 6, 100), backlogPlaces('all', 6, 60_000), backlogPlaces('live', 6, 60_000)]).toEqual([1, 4, 0])
  expect([backlogPlaces('all', 1, 100), backlogPlaces('all', 1, 60_000)]).toEqual([1, 1])
})

test('one that failed comes next again, and one that waited too long is backlog', () => {
  const queue = new UploadQueue<ReturnType<typeof at>>()
  queue.add([at(0), at(1)], 0)
  const first = queue.take(0, true) as ReturnType<typeof at>
  queue.again(first, 0)
  expect(queue.take(0, true)).toEqual(at(0))
  queue.add([at(minute)], minute)
  expect([queue.take(minute, true), queue.take(minute, true)]).toEqual([at(minute), at(1)])
})

test('a camera that is held waits by itself, and comes in its order when it is released', () => {
  const queue = new UploadQueue<ReturnType<typeof at>>()
  const take = (): string | undefined => {
    const item = queue.take(0, true)
    return item && `${item.cameraId}${item.head.capturedAt}`
  }
  queue.add([at(1, 'a'), at(1, 'b'), at(2, 'a'), at(2, 'b'), at(3, 'a')], 0)
  const first = queue.take(0, true) as ReturnType<typeof at>
  queue.again(first, 0)
  queue.hold('a')
  expect([take(), take(), take()]).toEqual(['b1', 'b2', undefined])
  queue.add([at(4, 'a'), at(3, 'b')], 0)
  queue.release('a')
  expect([take(), take(), take(), take(), take(), take()]).toEqual(['a1', 'a2', 'a3', 'a4', 'b3', undefined])
})

test('a long queue keeps its order', () => {
  const queue = new UploadQueue<ReturnType<typeof at>>()
  queue.add(
    Array.from({ length: 10_000 }, (_, n) => at(n)),
    10 * minute,
  )
  for (let n = 0; n < 10_000; n += 1) expect(queue.take(10 * minute, true)?.head.capturedAt).toBe(n)
})

test('announcements keep the order of a camera in each lane: an old frame that still waits holds no live one back', () => {
  const entry = (cameraId: string, seq: number, capturedAt: number, stored: boolean) => ({ cameraId, seq, head: { capturedAt }, stored })
  const now = 10 * minute
  const entries = [entry('a', 1, 0, false), entry('a', 2, 1, true), entry('b', 1, 0, true), entry('a', 3, now, true), entry('a', 4, now, false), entry('a', 5, now, true)]
  const queue = new AnnouncementQueue<(typeof entries)[number]>()
  const gone = new Set<(typeof entries)[number]>()
  const ready = (lane: 'live' | 'backlog', limit = 10, at = now) => queue.ready(lane, limit, at, (item) => !gone.has(item))
  const names = (items: typeof entries): string[] => items.map(({ cameraId, seq }) => `${cameraId}${seq}`)
  queue.add(entries, now)
  expect([names(ready('live')), names(ready('backlog'))]).toEqual([['a3'], ['b1']])
  expect(names(ready('live')), 'until they are delivered').toEqual(['a3'])
  for (const item of ready('live')) gone.add(item)
  expect(ready('live')).toEqual([])
  if (entries[0]) gone.add(entries[0])
  expect(names(ready('backlog')), 'what was given up holds nobody back').toEqual(['a2', 'b1'])
  expect(names(ready('backlog', 1))).toEqual(['a2'])
  if (entries[4]) entries[4].stored = true
  expect(names(ready('live', 10, now + minute)), 'what was live is backlog now').toEqual([])
  expect(names(ready('backlog', 10, now + minute)), 'one of each camera in turn').toEqual(['a2', 'b1', 'a4', 'a5'])
})

test('what was given up between others, as in a spool that was thinned, holds no announcement back, and is not remembered', () => {
  const entries = Array.from({ length: 8_000 }, (_, seq) => ({ cameraId: 'a', seq, head: { capturedAt: 0 }, stored: true }))
  const queue = new AnnouncementQueue<(typeof entries)[number]>()
  const holds = ({ seq }: { readonly seq: number }): boolean => seq % 16 === 0
  queue.add(entries, 10 * minute)
  expect(queue.ready('backlog', 200, 10 * minute, holds).map(({ seq }) => seq)).toEqual(Array.from({ length: 200 }, (_, n) => n * 16))
  queue.prune(500, holds)
  expect(queue.ready('backlog', 10_000, 10 * minute, () => true)).toHaveLength(500)
  const uploads = new UploadQueue<(typeof entries)[number]>()
  uploads.add(entries, 10 * minute)
  uploads.prune(500, holds)
  expect([uploads.take(10 * minute, true), uploads.take(10 * minute, true)].map((item) => item?.seq)).toEqual([0, 16])
})

test('no more than the limit goes out, whatever the sizes', () => {
  let free = 0
  expect([1_000, 4_000, 500, 2_000].map((bytes) => (free = freeAfter(free, 0, bytes, 1_000)))).toEqual([1_000, 5_000, 5_500, 7_500])
  expect(freeAfter(0, 7, 1_000, 0)).toBe(7)
})

test('frames go out in their windows, also over midnight, and at other times what was asked for', () => {
  const at = (hours: number, minutes: number): Date => new Date(2026, 10, 25, hours, minutes)
  const nights = ['22:00-06:30', '12:00-12:30']
  expect([at(22, 0), at(23, 59), at(0, 0), at(6, 29), at(12, 0)].map((when) => openingAt(nights, 'nothing', when))).toEqual(Array.from({ length: 5 }, () => 'all'))
  expect([at(6, 30), at(12, 30), at(21, 59)].map((when) => openingAt(nights, 'nothing', when))).toEqual(['nothing', 'nothing', 'nothing'])
  expect(openingAt(nights, 'live', at(10, 0))).toBe('live')
  expect(openingAt([], 'nothing', at(10, 0))).toBe('all')
})

test('while live frames come what has waited rests as long as it took, where a store is near, and hardly where one is far', () => {
  expect([backlogRest(5, 100), backlogRest(1_000, 100), backlogRest(5, 10_000)]).toEqual([5, 20, 0])
})
