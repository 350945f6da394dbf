import type { Pool } from '@frameloop/kit/postgres'
import { expect, test } from 'vitest'
import { makeKey } from './api-keys.ts'

const pool = { query: async () => ({ rows: [] }) } as unknown as Pool

test.each([[{ cameras: '' }], [{ verbs: ',' }], [{ tasks: ' , ' }]])('a scope that names nothing is not taken for everything: %j', async (flags) => {
  await expect((async () => makeKey(pool, 'kiosk', { verbs: 'predict', ...flags }))()).rejects.toMatchObject({
    code: 'REQUEST_INVALID',
    message: expect.stringContaining('names nothing'),
  })
})

test('what is left out is everything', async () => {
  expect(await makeKey(pool, 'kiosk', {})).toMatchObject({ key: expect.stringMatching(/^fl_/) })
})
