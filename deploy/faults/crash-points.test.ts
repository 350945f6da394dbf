/** A stage is killed again and again, at a step and after a delay that a seed chooses, while records keep coming: each comes out once, in order, with its memory in step. */
import { randomOf } from '@frameloop/kit/random'
import { until } from '@frameloop/kit/retry'
import { type Step, steps } from '@frameloop/stream-processors/chain/bus'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type Crashes, openCrashes } from '../e2e/crashes.ts'
import { openOwnHome, startOwnStack } from '../e2e/own-stack.ts'

const home = openOwnHome()
let crashes: Crashes
const killed = new Map<Step, number>()

beforeAll(async () => {
  const stack = await startOwnStack(home, [])
  crashes = await openCrashes(stack.state.environment)
})

afterAll(async () => {
  process.stdout.write(`killed after ${[...killed].map(([step, times]) => `"${step}" ${times} times`).join(', ')}\n`)
  await home[Symbol.asyncDispose]()
})

const kills = 8
/** Largest batch of the stage. */
const batch = 7

test.each(Array.from({ length: 8 }, (_, at) => at + 1))(`seed %i: ${kills} kills leave nothing lost, doubled or out of order`, async (seed) => {
  const random = randomOf(seed)
  const below = (limit: number): number => Math.floor(random() * limit)
  /** Kills in a row that came before anything was committed. */
  let fruitless = 0
  for (let kill = 0; kill < kills; kill += 1) {
    const step = steps[below(steps.length)] ?? 'read'
    // where it has not got on twice, it does now: what kills its process again and again is taken for poison
    const nth = Math.max(1 + below(3), fruitless >= 2 ? 2 : 1)
    fruitless = nth === 1 && step !== 'committed' ? fruitless + 1 : 0
    // at least as many batches as it takes until it kills itself
    await crashes.send(batch * nth + below(30))
    await using crasher = crashes.run(step, nth, below(3) * below(40))
    expect(await crasher.ended).toBe('SIGKILL')
    killed.set(step, (killed.get(step) ?? 0) + 1)
  }
  {
    await using _ = crashes.run('never', 0, 0)
    await until(async () => (await crashes.cameOut()).isAll || undefined, 120_000, 500)
  }
  const { numbered, wanted } = await crashes.cameOut()
  expect(numbered).toEqual(wanted)
})
