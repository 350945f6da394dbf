import { expect, test } from 'vitest'
import { Lifetime, ProcessFailed } from './lifetime.ts'

test('L1, L2: what was opened is closed newest first, and a failure does not stop the rest', async () => {
  const lifetime = new Lifetime()
  const closed: string[] = []
  lifetime.own('first', 1, () => closed.push('first'))
  lifetime.own('second', 2, () => {
    throw new Error('stuck')
  })
  lifetime.own('third', 3, () => closed.push('third'))
  const failures = await lifetime.close()
  expect(closed).toEqual(['third', 'first'])
  expect(failures.map(({ message }) => message)).toEqual(['closing second failed'])
})

test('L3: loops hear of the end before anything they use is closed', async () => {
  const lifetime = new Lifetime()
  let open = true
  let sawOpen: boolean | undefined
  lifetime.own('resource', undefined, () => {
    open = false
  })
  lifetime.run(
    'loop',
    async (signal) => {
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
      sawOpen = open
    },
    () => {},
  )
  await lifetime.close()
  expect(sawOpen).toBe(true)
})

test('who ends can tell whether somebody asked for it', async () => {
  const [asked, failed] = [new Lifetime(), new Lifetime()]
  await asked.close()
  await failed.close(new ProcessFailed('a bug'))
  expect([asked, failed].map(({ signal }) => signal.reason instanceof ProcessFailed)).toEqual([false, true])
})
