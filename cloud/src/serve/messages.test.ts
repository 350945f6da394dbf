import { setImmediate } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { together } from './messages.ts'

test('what is sent in one turn leaves together, and nothing is held back longer', async () => {
  const done: string[] = []
  const withOthers = together({ cork: () => done.push('cork'), uncork: () => done.push('uncork') })
  for (const one of ['a', 'b']) {
    withOthers()
    done.push(one)
  }
  await setImmediate()
  withOthers()
  done.push('c')
  await setImmediate()
  expect(done).toEqual(['cork', 'a', 'b', 'uncork', 'cork', 'c', 'uncork'])
})
