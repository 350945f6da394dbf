/** Kafka is killed, and stands still, again and again, at any moment of the transactions of four stages: everything goes on, and every frame is accounted for. */
import { setTimeout as sleep } from 'node:timers/promises'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { doubled, type OwnStack, openOwnHome, startOwnStack } from '../e2e/own-stack.ts'
import { framesFlow } from '../e2e/waiting.ts'
import { overdue, readLedger, showLedger } from '../src/ledger.ts'

const home = openOwnHome()
let stack: OwnStack
let pool: Pool

beforeAll(async () => {
  stack = await startOwnStack(home, ['--demo', '--camera', 'second=simulator:?seed=3', '--camera', 'third=simulator:?seed=4'])
  pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
})

afterAll(async () => {
  await pool?.end()
  await home[Symbol.asyncDispose]()
})

/** Seconds until a frame of each camera captured after now has been prepared: every stage works again. */
async function untilFramesFlow(what: string): Promise<number> {
  const since = Date.now()
  const back = await framesFlow(pool, 3, since + 200, 60_000)
  if (!back) throw new Error(`no frame was prepared within a minute of ${what}:\n${stack.printed().slice(-1500)}`)
  return (Date.now() - since) / 1000
}

async function expectSound(): Promise<void> {
  const clean = await until(
    async () => (overdue(await readLedger(pool)).length === 0 && (await readLedger(pool)).every(({ openMedia }) => openMedia < 60)) || undefined,
    90_000,
    1_000,
  )
  process.stdout.write(`${showLedger(await readLedger(pool))}\n`)
  expect(clean).toBe(true)
  expect(await doubled(pool)).toEqual([])
}

const spread = (seconds: readonly number[]): string => `${Math.min(...seconds).toFixed(1)} to ${Math.max(...seconds).toFixed(1)} s`

const kills = 20

test(`after ${kills} kills of Kafka frames flow each time, and the ledger is clean`, async () => {
  const took: number[] = []
  for (let at = 1; at <= kills; at += 1) {
    // throws when it does not run
    process.kill(stack.pidOf('kafka'), 'SIGKILL')
    took.push(await untilFramesFlow(`kill ${at}`))
  }
  const forgotten = stack.printed().match(/kafka had forgotten a transaction/g)?.length ?? 0
  process.stdout.write(`frames flow again ${spread(took)} after each of ${kills} kills; Kafka had forgotten transactions ${forgotten} times\n`)
  await expectSound()
}, 1_500_000)

/** Shorter and longer than its session with itself (4 s), those of its members (6 s), transactions (15 s). */
const stands = [2, 7, 12, 16, 25, 7, 12, 16, 25, 7]

test(`after Kafka has stood still ${stands.length} times, for ${Math.min(...stands)} to ${Math.max(...stands)} s, frames flow each time, and the ledger is clean`, async () => {
  const took: number[] = []
  for (const seconds of stands) {
    const pid = stack.pidOf('kafka')
    process.kill(pid, 'SIGSTOP')
    await sleep(seconds * 1000)
    process.kill(pid, 'SIGCONT')
    took.push(await untilFramesFlow(`standing still for ${seconds} s`))
  }
  process.stdout.write(`frames flow again ${took.map((back, at) => `${back.toFixed(1)} s after ${stands[at]} s`).join(', ')}\n`)
  await expectSound()
}, 1_500_000)
