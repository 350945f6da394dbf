/** What end-to-end tests share: the command as a person runs it, the database, and waiting for a condition. */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { inject } from 'vitest'
import { root } from '../src/home.ts'
import type { StackState } from '../src/up.ts'

const run = promisify(execFile)

export const home = inject('home')
export const state = JSON.parse(readFileSync(join(home, 'stack.json'), 'utf8')) as StackState
export const env = (name: string): string => state.environment[name] ?? ''

/** `frameloop ARGS`; rejects with what it printed when it exits with anything but 0. */
export async function frameloop(...args: string[]): Promise<string> {
  const options = { env: { ...process.env, FRAMELOOP_HOME: home }, maxBuffer: 64_000_000 }
  const { stdout } = await run(process.execPath, [join(root, 'deploy/bin/frameloop.mjs'), ...args], options).catch((thrown: Error & { stdout?: string }) => {
    // of what it printed the message has only the errors
    thrown.message += `\n${thrown.stdout ?? ''}`
    throw thrown
  })
  return stdout
}

export const pool: Pool = openPool(env('DATABASE_URL'), 'test', 2)

export async function one<Row extends object>(text: string, values: readonly unknown[] = []): Promise<Row | undefined> {
  return (await pool.query<Row>(text, [...values])).rows[0]
}

/** Asks until there is an answer; fails after `within` ms. */
export async function soon<Answer>(ask: () => Promise<Answer | undefined>, within = 240_000): Promise<Answer> {
  const answer = await until(ask, within, 200)
  if (answer === undefined) throw new Error(`nothing came within ${within} ms`)
  return answer
}

/** Captured media of a camera of which nothing is known further on: neither validated nor rejected nor reported lost. */
export async function unaccounted(sql: Pool, cameraId: string): Promise<number> {
  const { rows } = await sql.query<{ missing: number }>(
    `select coalesce(sum(c.highest_seq - (select count(*) from media m where m.camera_id = c.camera_id and m.epoch = c.epoch and m.status_rank >= 2 and m.seq <= c.highest_seq)
       - (select coalesce(sum(l.seq_to - l.seq_from + 1), 0) from losses l where l.camera_id = c.camera_id and l.epoch = c.epoch)), 0)::int as missing
     from captures c where c.camera_id = $1 and (c.reported_at < now() - interval '3 seconds' or c.state = 'ended')`,
    [cameraId],
  )
  return rows[0]?.missing ?? 0
}
