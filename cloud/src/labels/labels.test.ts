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

const label = { cameraId: 'door', zone: 'left', task: 'occupancy', label: 'empty', frameAt: '2026-11-24T10:00:00Z' }
const known = { zones: new Set(['door left occupancy']), frames: new Set<string>(), classes: new Map<string, string[]>() }

test('one label that names no moment is refused, with what moments look like', () => {
  expect(refuseLabel({ ...label, frameAt: '2026' }, known)).toBe('2026 is no time; times look like 2026-11-24T10:00:00.000Z')
  expect(refuseLabel(label, known)).toBeUndefined()
})

test('a label that is no class of its task is refused with those there are', () => {
  const classes = new Map([['occupancy', ['empty', 'occupied']]])
  expect(refuseLabel({ ...label, label: 'full' }, { ...known, classes })).toBe('the classes of task occupancy are empty, occupied, full is none of them')
  expect(refuseLabel(label, { ...known, classes })).toBeUndefined()
})

test('a label for a frame of another camera is refused, not kept where it never counts', () => {
  const { frameAt: _, ...byFrame } = { ...label, frameId: 'f' }
  expect(refuseLabel(byFrame, { ...known, frames: new Set(['f gate']) })).toBe('no frame f of camera door is known')
  expect(refuseLabel(byFrame, { ...known, frames: new Set(['f door']) })).toBeUndefined()
})
