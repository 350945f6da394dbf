import { expect, test } from 'vitest'
import { ByteBudget } from './byte-budget.ts'

test('who comes when the bytes are used up waits its turn, and what is larger than all of them goes alone', async () => {
  const budget = new ByteBudget(100)
  const order: string[] = []
  const take = (name: string, bytes: number): void => void Promise.resolve(budget.take(bytes)).then(() => order.push(name))
  take('a', 60)
  take('b', 40)
  take('large', 500)
  // it would fit, and nobody overtakes
  take('c', 1)
  await Promise.resolve()
  await Promise.resolve()
  expect([order, budget.taken]).toEqual([['a', 'b'], 100])
  budget.give(60)
  await new Promise(setImmediate)
  expect(order).toEqual(['a', 'b'])
  budget.give(40)
  await new Promise(setImmediate)
  expect([order, budget.taken]).toEqual([['a', 'b', 'large'], 500])
  budget.give(500)
  await new Promise(setImmediate)
  expect([order, budget.taken]).toEqual([['a', 'b', 'large', 'c'], 1])
})
