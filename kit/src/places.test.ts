import { expect, test } from 'vitest'
import { Places } from './places.ts'

test('so many run at once, in the order they came, also when one of them fails', async () => {
  const places = new Places(2)
  let [running, most] = [0, 0]
  const ended: number[] = []
  const act = (n: number) => async () => {
    running += 1
    most = Math.max(most, running)
    await new Promise((resolve) => setImmediate(resolve))
    running -= 1
    ended.push(n)
    if (n === 1) throw new Error('it fails')
  }
  await Promise.allSettled([1, 2, 3, 4, 5, 6].map((n) => places.run(act(n))))
  expect(most).toBe(2)
  expect(ended).toEqual([1, 2, 3, 4, 5, 6])
})
