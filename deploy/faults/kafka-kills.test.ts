/** Kafka is killed again and again, at any moment of the transactions of four stages: everything goes on, and every frame is accounted for. */
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { afterAll, expect, test } from 'vitest'
import { doubled, openOwnHome, startOwnStack } from '../e2e/own-stack.ts'
import { overdue, readLedger, showLedger } from '../src/ledger.ts'

const home = openOwnHome()
afterAll(() => home[Symbol.asyncDispose]())

const kills = 20

test(`after ${kills} kills of Kafka frames flow each time, and the ledger is clean`, async () => {
  const stack = await startOwnStack(home, ['--demo', '--camera', 'second=simulator:?seed=3', '--camera', 'third=simulator:?seed=4'])
  const pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
  try {
    const took: number[] = []
    for (let at = 1; at <= kills; at += 1) {
      // throws when it does not run
      process.kill(stack.pidOf('kafka'), 'SIGKILL')
      const since = Date.now()
      // a frame captured after the kill has been prepared: every stage works again
      const back = await until(
        async () => ((await pool.query("select 1 from features where camera_id = 'street' and frame_at > $1 limit 1", [new Date(since + 200)])).rowCount ?? 0) > 0 || undefined,
        60_000,
        100,
      )
      if (!back) throw new Error(`no frame was prepared within a minute of kill ${at}:\n${stack.printed().slice(-1500)}`)
      took.push((Date.now() - since) / 1000)
    }
    const clean = await until(
      async () => (overdue(await readLedger(pool)).length === 0 && (await readLedger(pool)).every(({ openMedia }) => openMedia < 60)) || undefined,
      90_000,
      1_000,
    )
    const ledgers = await readLedger(pool)
    const forgotten = stack.printed().match(/kafka had forgotten a transaction/g)?.length ?? 0
    process.stdout.write(
      `frames flow again ${Math.min(...took).toFixed(1)} to ${Math.max(...took).toFixed(1)} s after each of ${kills} kills; Kafka had forgotten transactions ${forgotten} times\n${showLedger(ledgers)}\n`,
    )
    expect(clean).toBe(true)
    expect(await doubled(pool)).toEqual([])
  } finally {
    await pool.end()
  }
}, 1_500_000)
