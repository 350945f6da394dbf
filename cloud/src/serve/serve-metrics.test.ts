import { openMetrics } from '@frameloop/kit/metrics'
import { expect, test } from 'vitest'
import { serveMetrics } from './serve-metrics.ts'

test('what waits and who listens is read when it is asked for, and what was counted is counted once', async () => {
  const metrics = openMetrics('test')
  const numbers = { sent: 5, skipped: 2, stalled: 0 }
  serveMetrics(metrics, { waiting: { questions: 3, bytes: 400 }, loaded: 2 }, { size: 7, numbers })
  await metrics.metrics()
  numbers.sent = 9
  const text = await metrics.metrics()
  const shown = (name: string): number => Number(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\d+)`, 'm').exec(text)?.[1])
  expect(
    ['serve_waiting_questions', 'serve_waiting_bytes', 'models_loaded', 'feed_readers', 'feed_sent_total', 'feed_skipped_total', 'feed_stalled_total'].map((name) =>
      shown(`frameloop_${name}`),
    ),
  ).toEqual([3, 400, 2, 7, 9, 2, 0])
})
