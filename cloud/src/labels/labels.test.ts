import { expect, test } from 'vitest'
import { isTime, refuseLabel } from './labels.ts'

test.each([
  ['2026-11-24T10:00:00Z', true],
  ['2026-11-24T10:00:00.123+01:00', true],
  ['2026', false],
  ['11/24/2026', false],
  ['2026-11-24T10:00:00', false],
  ['2026-13-24T10:00:00Z', false],
])('%s is a moment, whoever reads it: %s', (text, is) => expect(isTime(text)).toBe(is))

test('one label that names no moment is refused, with what moments look like', () => {
  const label = { cameraId: 'door', zone: 'left', task: 'occupancy', label: 'empty', frameAt: '2026' }
  expect(refuseLabel(label, new Set(['door left occupancy']), new Set())).toBe('2026 is no time; times look like 2026-11-24T10:00:00.000Z')
  expect(refuseLabel({ ...label, frameAt: '2026-11-24T10:00:00Z' }, new Set(['door left occupancy']), new Set())).toBeUndefined()
})
