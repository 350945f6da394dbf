/** A stage is killed at every step of a batch: every record comes out once, in order, with its memory in step. `deploy/faults/crash-points.test.ts` does it with many seeds. */
import { steps } from '@frameloop/stream-processors/chain/bus'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Crashes, openCrashes } from './crashes.ts'
import { pool, state } from './session.ts'
import { soon } from './waiting.ts'

let crashes: Crashes
beforeAll(async () => {
  crashes = await openCrashes(state.environment)
})
afterAll(() => pool.end())

test.each(steps)('killed right after the step "%s", nothing is lost, doubled or out of order', async (step) => {
  await crashes.send(30)
  // the second batch, so that the first has left something committed
  {
    await using crasher = crashes.run(step, 2, step === 'produced' ? 20 : 0)
    expect(await crasher.ended).toBe('SIGKILL')
  }
  {
    await using _ = crashes.run('never', 0, 0)
    await soon(async () => (await crashes.cameOut()).isAll || undefined)
  }
  const { numbered, wanted } = await crashes.cameOut()
  expect(numbered).toEqual(wanted)
})
