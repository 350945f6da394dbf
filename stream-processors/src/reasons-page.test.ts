import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { reasonsPage } from './reasons-page.ts'

test('docs/reasons.md lists every reason and mark that stages use', () => {
  expect(readFileSync(new URL('../../docs/reasons.md', import.meta.url), 'utf8')).toBe(reasonsPage())
})
