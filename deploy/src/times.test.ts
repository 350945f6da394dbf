import { expect, test } from 'vitest'
import { timeOf } from './times.ts'

test('a time is a day of UTC, or a moment with its zone, and nothing that means another one elsewhere', () => {
  expect(timeOf('2026-11-24', '--from')?.toISOString()).toBe('2026-11-24T00:00:00.000Z')
  expect(timeOf('2026-11-24T10:00:00.5+01:00', '--from')?.toISOString()).toBe('2026-11-24T09:00:00.500Z')
  expect(timeOf(undefined, '--from')).toBeNull()
  for (const wrong of ['2026-11-24T10:00', '5', 'yesterday', '2026-13-01', '']) expect(() => timeOf(wrong, '--from'), wrong).toThrow(/^--from .* is no time/)
})
