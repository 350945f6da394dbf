import { Fault } from '@frameloop/kit/fault'
import { openLog } from '@frameloop/kit/log'
import { expect, test } from 'vitest'
import { runLive } from './live.ts'

const log = openLog('test', 'silent')
const never = new AbortController().signal
const fenced = (): Fault => new Fault('PRODUCER_FENCED', 'Kafka has ended the membership')

/** Ends as it is told, one end after the other. */
function stage(ends: readonly (Error | undefined)[]): { readonly run: () => Promise<void>; readonly times: () => number } {
  let at = 0
  return {
    run: async () => {
      const end = ends[at++]
      if (end) throw end
    },
    times: () => at,
  }
}

test('live frames whose place in Kafka is lost join again, and nothing else ends with them', async () => {
  const { run, times } = stage([fenced(), fenced(), fenced(), undefined])
  await runLive(run, never, log, 1)
  expect(times()).toBe(4)
})

test('whose name another process has gives it up in the end', async () => {
  const { run, times } = stage(Array.from({ length: 9 }, fenced))
  await expect(runLive(run, never, log, 1)).rejects.toMatchObject({ code: 'PRODUCER_FENCED' })
  expect(times()).toBe(4)
})

test('any other end of the live frames is the end of the process', async () => {
  const { run, times } = stage([new Error('a bug')])
  await expect(runLive(run, never, log, 1)).rejects.toThrow('a bug')
  expect(times()).toBe(1)
})
