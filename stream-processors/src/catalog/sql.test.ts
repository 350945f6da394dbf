import { expect, test } from 'vitest'
import { jsonOf } from './sql.ts'

test('a NUL in any text is left out, and a backslash that only looks like one stays', () => {
  const rows = [{ key: 'a\0b\0\0', path: 'C:\\u0000', both: '\\\0\\' }]
  expect(JSON.parse(jsonOf(rows))).toEqual([{ key: 'ab', path: 'C:\\u0000', both: '\\\\' }])
})
