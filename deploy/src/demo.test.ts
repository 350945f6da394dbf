import { expect, test } from 'vitest'
import { lastMoment } from './demo.ts'
import type { LabelLine } from './label-file.ts'

const line = (more: object): LabelLine => ({ line: 1, zone: 'left', label: 'empty', ...more })

test('training waits for the last moment that labels speak of, in the footage or by the clock, however many there are', () => {
  const many = Array.from({ length: 200_000 }, (_, at) => line({ mediaOffsetMs: at }))
  expect(lastMoment(many)).toEqual({ offsetMs: 199_999 })
  expect(lastMoment([line({ frameAt: '2026-11-24T10:00:01Z' }), line({ frameAt: '2026-11-24T10:00:00Z' })])).toEqual({ at: Date.UTC(2026, 10, 24, 10, 0, 1) })
  expect(lastMoment([line({ frameId: 'f' })])).toEqual({})
})
