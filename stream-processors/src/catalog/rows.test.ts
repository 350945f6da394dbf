import { expect, test } from 'vitest'
import { mergeMedia } from './rows.ts'

const announced = (lane: string, key: string, trace: string) => ({
  ...{ media_id: 'm', kind: 'image', source: 'camera', lane, media_offset_us: null, bucket: 'b', object_key: key, object_sha256: key, object_bytes: 1, trace_id: trace },
  ...{ status_rank: 1, reason: '', agent_id: 'a', format: '', width: 1, height: 1, frame_count: null, parameters: {} },
})
const validated = (lane: string, key: string, trace: string) => ({ ...announced(lane, key, trace), status_rank: 2, format: 'jpeg', width: 640, height: 480 })

test('a medium that was announced twice is where it was validated, whichever announcement came first and in whatever batches', () => {
  const [first, again, checked] = [announced('backlog', 'forged', '1'), announced('live', 'own', '2'), validated('live', 'own', '2')]
  for (const order of [
    [first, again, checked],
    [again, first, checked],
    [checked, first, again],
    [first, checked, again],
  ])
    expect(mergeMedia(order)).toMatchObject([{ lane: 'live', object_key: 'own', object_sha256: 'own', trace_id: '2', format: 'jpeg', status_rank: 2, width: 640 }])
})

test('of two announcements the first one stays, as it does when they come in batches of their own', () => {
  expect(mergeMedia([announced('live', 'one', '1'), announced('backlog', 'one', '2')])).toMatchObject([{ lane: 'live', trace_id: '1' }])
})
