import { expect, test } from 'vitest'
import { type Health, healthAnswer } from './health.ts'
import { openMetrics } from './metrics.ts'

const readiness = async (health: Partial<Health>): Promise<readonly [number, unknown]> => {
  const answer = await healthAnswer('/readyz', { name: 'p', metrics: openMetrics('p'), notReady: () => ({}), ...health })
  return [answer?.status ?? 0, JSON.parse(String(answer?.body))]
}

test('ready, not ready with what it waits for, and ready without something, which is said', async () => {
  expect(await readiness({})).toEqual([200, { status: 'ready', process: 'p' }])
  expect(await readiness({ notReady: () => ({ kafka: 'connecting' }) })).toEqual([503, { status: 'not ready', process: 'p', waiting: { kafka: 'connecting' } }])
  expect(await readiness({ degraded: () => ({ postgres: 'does not answer' }) })).toEqual([200, { status: 'ready', process: 'p', degraded: { postgres: 'does not answer' } }])
})
