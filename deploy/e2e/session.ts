/** What end-to-end tests of the shared stack need: the command as a person runs it, and the database. */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { openPool, type Pool } from '@frameloop/kit/postgres'
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
