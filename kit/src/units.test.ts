import { expect, test } from 'vitest'
import { showBytes, showMs } from './units.ts'

test('what is rounded up to a whole unit is said in that unit', () => {
  expect([999.6, 59_400, 59_700, 119_700, 9_960, 92_500].map(showMs)).toEqual(['1.0 s', '59 s', '1 min 0 s', '2 min 0 s', '10 s', '1 min 33 s'])
  expect([3_599_700, 7_180_000, 86_399_000, 93_600_000].map(showMs)).toEqual(['1 h 0 min', '2 h 0 min', '1 d 0 h', '1 d 2 h'])
  expect([999, 1_500, 9_960, 999_400, 999_999].map(showBytes)).toEqual(['999 B', '1.5 kB', '10 kB', '999 kB', '1.0 MB'])
})
