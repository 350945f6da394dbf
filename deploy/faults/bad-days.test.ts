/**
 * Bad days of a stack whose broker, object store and registry stand behind proxies that go wrong. One stack for all of them;
 * after each one frames flow again by themselves, everything captured is accounted for, and nothing came out twice.
 */
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import type { Ms } from '@frameloop/kit/units'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { doubled, type OwnStack, openOwnHome, startOwnStack } from '../e2e/own-stack.ts'
import { framesFlow } from '../e2e/waiting.ts'
import { build, root } from '../src/home.ts'
import { overdue, readLedger, showLedger } from '../src/ledger.ts'
import { repair } from '../src/repair.ts'
import { settleTime, showVerified, verify } from '../src/verify.ts'
import { endTxn, type FaultProxy, openProxy, type Trouble } from './proxy.ts'

const home = openOwnHome()
const portOf = (part: string) => (): number => (JSON.parse(readFileSync(join(home.folder, 'ports.json'), 'utf8')) as Record<string, number>)[part] ?? 0
type Part = 'kafka' | 's3' | 'registry'
let proxies: Readonly<Record<Part, FaultProxy>>
let stack: OwnStack
let pool: Pool
const report: string[] = []

beforeAll(async () => {
  proxies = { kafka: await openProxy('kafka', portOf('kafka')), s3: await openProxy('tcp', portOf('s3')), registry: await openProxy('tcp', portOf('registry')) }
  const ports = Object.fromEntries(Object.entries(proxies).map(([part, { port }]) => [part, port]))
  stack = await startOwnStack(home, ['--demo', '--camera', 'second=simulator:?seed=3'], { FRAMELOOP_VIA: JSON.stringify(ports) })
  pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
  expect(await framesSince(Date.now())).toBe(true)
})

afterAll(async () => {
  process.stdout.write(`${report.join('\n')}\n`)
  await pool?.end()
  await stack?.end('SIGTERM')
  for (const proxy of Object.values(proxies)) await proxy.close()
  await home[Symbol.asyncDispose]()
})

const framesSince = (since: number, within: Ms = 90_000): Promise<true | undefined> => framesFlow(pool, 2, since, within)

const restartsOf = (): number => stack.printed().match(/starting it again/g)?.length ?? 0

/** What must hold after every bad day. */
async function expectSound(): Promise<void> {
  const clean = await until(async () => overdue(await readLedger(pool)).length === 0 || undefined, 120_000, 1_000)
  expect(clean ? '' : showLedger(await readLedger(pool))).toBe('')
  expect(await doubled(pool)).toEqual([])
  // order per camera: what was captured later comes out later
  const disordered = await pool.query(
    `select 1 from (select m.seq, lag(m.seq) over (partition by m.camera_id, m.epoch order by h.record_offset) as before
       from media m join hops h on h.subject_id = m.media_id and h.topic = 'media.validated' where m.lane = 'live') s where seq < before`,
  )
  expect(disordered.rowCount).toBe(0)
}

async function badDay(name: string, part: Part, troubles: readonly { readonly trouble: Trouble; readonly lasts: Ms }[]): Promise<void> {
  const proxy = proxies[part]
  const [fired, restarts] = [proxy.fired, restartsOf()]
  for (const { trouble, lasts } of troubles) {
    proxy.trouble = trouble
    await sleep(lasts)
  }
  proxy.trouble = { kind: 'none' }
  const since = Date.now()
  // a fault that did not happen proves nothing
  expect(proxy.fired - fired).toBeGreaterThan(0)
  expect(await framesSince(since)).toBe(true)
  const back = (Date.now() - since) / 1000
  await expectSound()
  report.push(`${name}: fired ${proxy.fired - fired} times, frames flow again ${back.toFixed(1)} s after it ended, processes started again ${restartsOf() - restarts}`)
}

const once = (trouble: Trouble, lasts: Ms): readonly { readonly trouble: Trouble; readonly lasts: Ms }[] => [{ trouble, lasts }]
/** A new trouble each time, so that its count begins anew. */
const again = (make: (at: number) => Trouble, times: number, every: Ms): readonly { readonly trouble: Trouble; readonly lasts: Ms }[] =>
  Array.from({ length: times }, (_, at) => ({ trouble: make(at), lasts: every }))

test('Kafka answers 250 ms late each way for 20 s', () => badDay('Kafka slow', 'kafka', once({ kind: 'delay', ms: 250 }, 20_000)))
test('connections to Kafka are reset in the middle of answers, 30 times', () =>
  badDay(
    'Kafka cut in answers',
    'kafka',
    again((at) => ({ kind: 'cut', of: 'answers', after: 200 + at * 997 }), 30, 700),
  ))
test('connections to Kafka are reset in the middle of requests, 30 times', () =>
  badDay(
    'Kafka cut in requests',
    'kafka',
    again((at) => ({ kind: 'cut', of: 'requests', after: 200 + at * 997 }), 30, 700),
  ))
test('Kafka is a black hole for 40 s: longer than sessions, transactions and requests last', () => badDay('Kafka black hole', 'kafka', once({ kind: 'black hole' }, 40_000)))
test.each(['validate', 'extract', 'features', 'serve'])('the end of a transaction of %s is held for 30 s and then delivered', (stage) =>
  badDay(`EndTxn of ${stage} held`, 'kafka', [
    { trouble: { kind: 'hold', apiKey: endTxn, clientId: new RegExp(`^frameloop\\.${stage}\\.`), ms: 30_000 }, lasts: 1_000 },
    // the held request arrives while later transactions are under way
    { trouble: { kind: 'none' }, lasts: 32_000 },
  ]),
)
test('the object store refuses everything with 503 for 20 s', () => badDay('S3 503', 's3', once({ kind: 'refuse', status: 503 }, 20_000)))
test('the object store hangs for 40 s', () => badDay('S3 black hole', 's3', once({ kind: 'black hole' }, 40_000)))
test('connections to the object store are reset in the middle of objects, both ways', () =>
  badDay(
    'S3 cut',
    's3',
    again((at) => ({ kind: 'cut', of: at % 2 === 0 ? 'answers' : 'requests', after: 500 + at * 1_003 }), 30, 700),
  ))
test('the object store does what it is asked and its answers are lost for 10 s', () => badDay('S3 answers lost', 's3', once({ kind: 'answers lost' }, 10_000)))
test('the registry is down while every process is killed and starts again', async () => {
  const proxy = proxies.registry
  const [fired, restarts] = [proxy.fired, restartsOf()]
  proxy.trouble = { kind: 'refuse', status: 503 }
  for (const name of ['validate', 'extract', 'features', 'catalog', 'agent']) process.kill(stack.pidOf(name), 'SIGKILL')
  const asked = await until(async () => proxy.fired > fired + 5 || undefined, 30_000, 100)
  expect(asked).toBe(true)
  await sleep(10_000)
  proxy.trouble = { kind: 'none' }
  const since = Date.now()
  expect(await framesSince(since)).toBe(true)
  report.push(
    `registry down at the start: refused ${proxy.fired - fired} times, frames flow again ${((Date.now() - since) / 1000).toFixed(1)} s after it ended, processes started again ${restartsOf() - restarts}`,
  )
  await expectSound()
})
test.each(['validate', 'extract', 'features', 'catalog'])('%s is stopped for 20 s, longer than its session, and goes on', async (name) => {
  const pid = stack.pidOf(name)
  process.kill(pid, 'SIGSTOP')
  await sleep(20_000)
  process.kill(pid, 'SIGCONT')
  const since = Date.now()
  expect(await framesSince(since)).toBe(true)
  report.push(`${name} stopped for 20 s: frames flow again ${((Date.now() - since) / 1000).toFixed(1)} s after it ended`)
  await expectSound()
})
test.each([1, 2])('rebalance storm: a second instance of features comes and goes every 2 s for 30 s (round %i)', async () => {
  const env = { ...process.env, ...stack.state.environment, INSTANCE: '2', PORT: '0' }
  const since = Date.now()
  let comings = 0
  while (Date.now() - since < 30_000) {
    const second = spawn(process.execPath, [join(build, 'processor.mjs'), 'features'], { env, stdio: 'ignore' })
    const ended = new Promise((resolve) => second.once('exit', resolve))
    comings += 1
    await sleep(2_000)
    // as asked and as a crash, in turns
    second.kill(comings % 2 === 0 ? 'SIGKILL' : 'SIGTERM')
    await ended
  }
  // it went on all the while
  const { rows } = await pool.query<{ n: number }>('select count(*)::int as n from features where prepared_at between $1 and $2', [new Date(since), new Date()])
  expect(rows[0]?.n).toBeGreaterThan(0)
  const calm = Date.now()
  expect(await framesSince(calm)).toBe(true)
  report.push(`a second instance came and went ${comings} times: ${rows[0]?.n} frames prepared meanwhile, all cameras again ${((Date.now() - calm) / 1000).toFixed(1)} s later`)
  await expectSound()
})

test('a replay beside live and beside a backlog, killed three times: it ends with each frame once, and live goes on', async () => {
  const frameloop = (...args: string[]) =>
    spawn(process.execPath, [join(root, 'deploy/bin/frameloop.mjs'), ...args], { env: { ...process.env, FRAMELOOP_HOME: home.folder }, stdio: ['ignore', 'pipe', 'ignore'] })
  // what cannot be stored for 45 s comes as backlog
  proxies.s3.trouble = { kind: 'refuse', status: 503 }
  await sleep(45_000)
  proxies.s3.trouble = { kind: 'none' }
  const since = Date.now()
  const end = new Date(since - 60_000)
  const asked = ['--from', stack.state.startedAt, '--to', end.toISOString(), '--preprocessing', '96x96,equalise']
  const { rows: wanted } = await pool.query<{ n: number }>('select count(*)::int as n from frames where frame_at >= $1 and frame_at < $2', [stack.state.startedAt, end])
  const selectReplay = async () =>
    (await pool.query<{ replay_id: string; state: string; records: number }>('select replay_id, state, records from replays order by created_at desc limit 1')).rows[0]
  let kills = 0
  for (; kills < 3; kills += 1) {
    const before = await selectReplay()
    const child = frameloop('replay', ...(kills === 0 ? asked : ['--resume', before?.replay_id ?? '']))
    const ended = new Promise((resolve) => child.once('exit', resolve))
    const isRunning = await until(async () => (await selectReplay())?.state === 'running' || undefined, 60_000, 50)
    expect(isRunning).toBe(true)
    await sleep(4_000)
    // a kill of what has ended already proves nothing
    expect(child.exitCode).toBe(null)
    child.kill('SIGKILL')
    await ended
  }
  const last = frameloop('replay', '--json', '--resume', (await selectReplay())?.replay_id ?? '')
  const code = await new Promise((resolve) => last.once('exit', resolve))
  expect(code).toBe(0)
  const done = await selectReplay()
  expect(done).toMatchObject({ state: 'done', records: wanted[0]?.n })
  const took = (Date.now() - since) / 1000
  // a backlog there was, and it has gone through meanwhile or goes on; live never stopped
  const { rows } = await pool.query<{ lane: string; n: number }>(
    'select m.lane, count(*)::int as n from features f join frames r using (frame_id) join media m on m.media_id = r.media_id where f.prepared_at > $1 group by m.lane',
    [new Date(since)],
  )
  const of = (lane: string) => rows.find((row) => row.lane === lane)
  expect(of('backlog')?.n).toBeGreaterThan(0)
  expect(of('live')?.n).toBeGreaterThan(0)
  expect(await framesSince(Date.now())).toBe(true)
  // nothing of a replay has an effect
  expect((await pool.query("select 1 from hops where topic like '%.replay.%'")).rowCount).toBe(0)
  report.push(
    `a replay of ${wanted[0]?.n} frames, killed three times, ended after ${took.toFixed(1)} s; beside it ${of('live')?.n} live frames and ${of('backlog')?.n} of a backlog were prepared`,
  )
  await expectSound()
  const removed = frameloop('replay', 'remove', done?.replay_id ?? '')
  expect(await new Promise((resolve) => removed.once('exit', resolve))).toBe(0)
})

test('verify finds the whole bad day clean, but for what given-up batches left behind, and repair removes that', async () => {
  const env = stack.state.environment
  const store = objectStoreOf(env)
  const tools = { pool, store, bucketPrefix: 'frameloop', brokers: env['KAFKA_BROKERS'] ?? '', settle: settleTime, say: () => {} }
  const range = [new Date(Date.parse(stack.state.startedAt) - 600_000), new Date(Date.now() - 5_000)] as const
  try {
    const first = await verify(...range, tools)
    report.push(showVerified(first))
    expect(first.findings.filter(({ kind, object }) => kind !== 'orphan' || object?.role !== 'processed')).toEqual([])
    const repaired = await repair(first.findings, { ...tools, registryUrl: env['SCHEMA_REGISTRY_URL'] ?? '', orphanAge: 0 })
    expect(repaired).toMatchObject({ removed: first.findings.length, left: [] })
    expect((await verify(...range, tools)).findings).toEqual([])
  } finally {
    store.close()
  }
})
