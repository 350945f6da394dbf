import { expect, test } from 'vitest'
import { oneOf } from './dataset.ts'

const zone = (name: string, x: number) =>
  ({ zone: name, tasks: ['occupancy'], x, y: 0, width: 10, height: 10, offset: 0, shape: [8, 8, 3], brightness: 0, sharpness: 0, phash: '' }) as const
const row = (pass: number, zones: readonly ReturnType<typeof zone>[], label = 'empty', recordedAt = 0) => ({
  pass,
  zone: 'left',
  zones: [...zones] as never,
  label,
  recorded_at: new Date(recordedAt),
})

test('footage that was played before its zones were drawn is learned from once it plays with them', () => {
  expect(oneOf([row(1, [zone('full', 0)]), row(2, [zone('left', 0)]), row(3, [zone('left', 0)])], 'occupancy')).toMatchObject({ pass: 2 })
  expect(oneOf([row(1, [zone('full', 0)])], 'occupancy')).toBeUndefined()
})

test('a zone that was drawn anew is learned where it lies now', () => {
  expect(oneOf([row(1, [zone('left', 0)]), row(2, [zone('left', 5)]), row(3, [zone('left', 5)])], 'occupancy')).toMatchObject({ pass: 2 })
})

test('a correction of one frame counts for the picture, whichever pass it names', () => {
  const rows = [row(1, [zone('left', 0)], 'empty', 1), row(2, [zone('left', 0)], 'empty', 1), row(2, [zone('left', 0)], 'occupied', 2)]
  expect(oneOf(rows, 'occupancy')).toMatchObject({ pass: 1, label: 'occupied' })
})
