import { expect, test } from 'vitest'
import { Turns } from './turns.ts'

test('what is about one thing waits its turn, whatever becomes of what is before it; others go on meanwhile', async () => {
  const turns = new Turns<string>()
  const order: string[] = []
  let let1go = (): void => {}
  const held = new Promise<void>((resolve) => {
    let1go = resolve
  })
  const first = turns.take('a', async () => {
    await held
    order.push('a1')
    throw new Error('a1')
  })
  const second = turns.take('a', async () => order.push('a2'))
  await turns.take('b', async () => order.push('b1'))
  let1go()
  await expect(first).rejects.toThrow('a1')
  await second
  expect(order).toEqual(['b1', 'a1', 'a2'])
})
