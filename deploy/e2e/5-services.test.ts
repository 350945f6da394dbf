/** A stack that uses what somebody has already: the services of the shared one are the ones of your own here. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openPool } from '@frameloop/kit/postgres'
import { afterAll, expect, test } from 'vitest'
import { choosePorts, openHome } from '../src/home.ts'
import { prepareKafka } from '../src/parts.ts'
import { ensureDatabases } from '../src/postgres.ts'
import { Supervisor } from '../src/supervisor.ts'
import { openOwnHome, startOwnStack } from './own-stack.ts'
import { env, pool, state } from './session.ts'

const scratch = mkdtempSync(join(tmpdir(), 'frameloop-scratch-'))

afterAll(async () => {
  rmSync(scratch, { recursive: true, force: true, maxRetries: 20, retryDelay: 200 })
  await pool.end()
})

test('in a database of your own the registry and MLflow get theirs beside it, and settings of processes are handed on', async () => {
  const database = new URL(env('DATABASE_URL'))
  await ensureDatabases(database.href, ['alone'])
  database.pathname = '/alone'
  const own = openOwnHome()
  const running = await startOwnStack(own, ['--no-demo'], {
    DATABASE_URL: database.href,
    API_KEYS: 'required',
    ALLOWED_ORIGINS: 'https://shop.example.org',
    REQUIRE_SIGNATURES: 'true',
  })
  try {
    const { rows } = await pool.query<{ datname: string }>("select datname from pg_database where datname like 'alone%' order by 1")
    expect(rows.map(({ datname }) => datname)).toEqual(['alone', 'alone_mlflow', 'alone_registry'])
    const serve = running.state.endpoints['serve'] ?? ''
    expect((await fetch(`${serve}/v1/models`)).status).toBe(401)
    const asked = await fetch(`${serve}/v1/models`, { headers: { origin: 'https://shop.example.org' } })
    expect(asked.headers.get('access-control-allow-origin')).toBe('https://shop.example.org')
    expect((await fetch(`${serve}/v1/models`, { headers: { origin: 'https://other.example.org' } })).status).toBe(403)
    // where everybody must sign, the frame that proves the start is signed: it is ready; no agent of its own runs here
    const known = openPool(database.href, 'test', 1)
    expect((await known.query('select agent_id from agent_keys order by 1')).rows).toEqual([{ agent_id: 'ingest' }])
    await known.end()
  } finally {
    await own[Symbol.asyncDispose]()
  }
})

test('every backing service can be one of your own, named by its address, and is not started then', async () => {
  const folder = openHome(join(scratch, 'kafka-home'))
  const supervisor = new Supervisor(folder, () => {})
  const { kafka = 0, controller = 0 } = await choosePorts(folder, ['kafka', 'controller'])
  const own = openOwnHome()
  try {
    await supervisor.start(await prepareKafka(folder, kafka, controller))
    const database = new URL(env('DATABASE_URL'))
    await ensureDatabases(database.href, ['elsewhere'])
    database.pathname = '/elsewhere'
    const running = await startOwnStack(own, ['--no-demo'], {
      KAFKA_BROKERS: `127.0.0.1:${kafka}`,
      SCHEMA_REGISTRY_URL: env('SCHEMA_REGISTRY_URL'),
      S3_ENDPOINT: env('S3_ENDPOINT'),
      AWS_ACCESS_KEY_ID: env('AWS_ACCESS_KEY_ID'),
      AWS_SECRET_ACCESS_KEY: env('AWS_SECRET_ACCESS_KEY'),
      DATABASE_URL: database.href,
      MLFLOW_TRACKING_URI: state.endpoints['mlflow'] ?? '',
    })
    expect(running.processes.map(({ name }) => name).sort()).toEqual([
      'archive',
      'catalog',
      'console',
      'extract',
      'features',
      'ingest',
      'labels',
      'serve',
      'train',
      'validate',
      'watch',
    ])
    await running.end('SIGTERM')
    expect(running.alive()).toEqual([])
  } finally {
    await own[Symbol.asyncDispose]()
    await supervisor.stop()
  }
})
