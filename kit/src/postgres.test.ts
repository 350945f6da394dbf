import { expect, test } from 'vitest'
import { databaseNotReady, type Pool } from './postgres.ts'

test('a database that takes a question and falls silent is said not to answer within seconds, and is asked once', async () => {
  let questions = 0
  let answer = (): void => {}
  const pool = {
    query: () => {
      questions += 1
      return new Promise<void>((resolve) => {
        answer = resolve
      })
    },
  } as unknown as Pool
  const began = Date.now()
  expect(await Promise.all([databaseNotReady(pool), databaseNotReady(pool)])).toEqual([{ postgres: 'does not answer' }, { postgres: 'does not answer' }])
  expect(Date.now() - began).toBeLessThan(4_000)
  expect(questions).toBe(1)
  answer()
  await Promise.resolve()
  const again = databaseNotReady(pool)
  answer()
  expect(await again).toEqual({})
})
