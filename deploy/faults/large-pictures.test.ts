/** The largest pictures that are let in, many at once: memory stays bounded, and each becomes a frame. */
import { readFileSync } from 'node:fs'
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import sharp from 'sharp'
import { afterAll, expect, test } from 'vitest'
import { openOwnHome, startOwnStack } from '../e2e/own-stack.ts'

const home = openOwnHome()
afterAll(() => home[Symbol.asyncDispose]())

const pictures = 16
/** 49 million pixels, just below the limit: 147 MB each when decoded. */
const side = 7_000
const boundMB = 1_000

test(`${pictures} pictures of ${side}x${side} at once are prepared, and no stage takes more than ${boundMB} MB`, async () => {
  const stack = await startOwnStack(home, ['--no-demo'])
  const pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
  const peak = (name: string): number => Math.round(Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${stack.pidOf(name)}/status`, 'utf8'))?.[1]) / 1024)
  try {
    const before = Object.fromEntries(['validate', 'features'].map((name) => [name, peak(name)]))
    const sent = await Promise.all(
      Array.from({ length: pictures }, async (_, at) => {
        const plain = sharp({ create: { width: side, height: side, channels: 3, background: { r: 10 * at, g: 90, b: 200 - 10 * at } } })
        const isPng = at % 2 === 1
        const body = await (isPng ? plain.png() : plain.jpeg()).toBuffer()
        const response = await fetch(`${stack.state.health['ingest']}/v1/media?source=large-${at % 3}`, {
          method: 'POST',
          headers: { 'content-type': isPng ? 'image/png' : 'image/jpeg', 'idempotency-key': `large-${at}` },
          body: new Uint8Array(body),
        })
        return response.status
      }),
    )
    expect(new Set(sent)).toEqual(new Set([201]))
    const prepared = await until(
      async () => (await pool.query<{ n: number }>("select count(*)::int as n from features where camera_id like 'large-%'")).rows[0]?.n === pictures || undefined,
      180_000,
      500,
    )
    const after = Object.fromEntries(['validate', 'features', 'ingest'].map((name) => [name, peak(name)]))
    process.stdout.write(`most resident MB: before ${JSON.stringify(before)}, after ${JSON.stringify(after)}\n`)
    expect(prepared).toBe(true)
    for (const name of ['validate', 'features', 'ingest']) expect(after[name], name).toBeLessThan(boundMB)
  } finally {
    await pool.end()
  }
}, 400_000)
