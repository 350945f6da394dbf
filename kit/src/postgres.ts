/** One pool per process and transactions that are undone unless they succeed. */
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Ms } from './units.ts'

export type Pool = pg.Pool
export type Client = pg.PoolClient
/** Anything a statement can be sent to: the pool, or a client inside a transaction. */
export type Sql = Pick<pg.Pool, 'query'>

// bigint columns hold counts, offsets and milliseconds, all below 2^53
pg.types.setTypeParser(pg.types.builtins.INT8, Number)

export function openPool(databaseUrl: string, name: string, max = 6): Pool {
  const pool = new pg.Pool({ connectionString: databaseUrl, application_name: `frameloop-${name}`, max, connectionTimeoutMillis: 5_000, idleTimeoutMillis: 30_000 })
  // an idle connection that the server closes must not end the process: the next query opens a new one
  pool.on('error', () => {})
  return pool
}

/** Runs `work` in a transaction: committed when it returns, rolled back when it throws. */
export async function inTransaction<Result>(pool: Pool, work: (client: Client) => Promise<Result>): Promise<Result> {
  const client = await pool.connect()
  let broken: Error | undefined
  // the statement in hand fails with it; without a listener the process would
  const lost = (error: Error): void => {
    broken = error
  }
  client.on('error', lost)
  try {
    await client.query('begin')
    const result = await work(client)
    await client.query('commit')
    return result
  } catch (thrown) {
    await client.query('rollback').catch((failure: Error) => {
      broken = failure
    })
    throw thrown
  } finally {
    client.off('error', lost)
    client.release(broken)
  }
}

/** Whether the database may answer later: connection refused or lost, starting up, shutting down, serialisation failure, deadlock (PostgreSQL manual, appendix A). */
export function isDatabaseTransient(thrown: unknown): boolean {
  const code = (thrown as { code?: string }).code ?? ''
  if (/^(08|53|57P0)/.test(code) || code === '40001' || code === '40P01') return true
  if (/^(ECONNREFUSED|ECONNRESET|EPIPE|ETIMEDOUT|ENOENT)$/.test(code)) return true
  return /Connection terminated|timeout exceeded when trying to connect|Client has encountered a connection error|not queryable/.test((thrown as Error).message ?? '')
}

const probePatience: Ms = 2_000
/** Probes that are under way. */
const asked = new WeakMap<Pool, Promise<unknown>>()

/** What `/readyz` says of the database: nothing when it answers. */
export async function databaseNotReady(pool: Pool): Promise<Readonly<Record<string, string>>> {
  // a database that has gone silent must not silence who asks, nor be asked again and again meanwhile
  const asking = asked.get(pool) ?? pool.query('select 1').finally(() => asked.delete(pool))
  asked.set(pool, asking)
  const answers = await Promise.race([asking.then(() => true), sleep(probePatience, false, { ref: false })]).catch(() => false)
  return answers ? {} : { postgres: 'does not answer' }
}
