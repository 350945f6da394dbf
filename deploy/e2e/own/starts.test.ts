/** Starting and ending: what is left behind, what is lost, what is said when it cannot start. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { openPool } from '@frameloop/kit/postgres'
import { isSameProcess } from '@frameloop/kit/process-identity'
import rdkafka from 'node-rdkafka'
import { afterAll, expect, test } from 'vitest'
import { endHangingTransactions, readTransactionLog } from '../../src/hanging-transactions.ts'
import { choosePorts, openHome, readState, root } from '../../src/home.ts'
import { prepareKafka } from '../../src/parts.ts'
import { Supervisor } from '../../src/supervisor.ts'
import { runningSupervisor } from '../../src/up.ts'
import { doubled, type OwnStack, openOwnHome, startOwnStack } from '../own-stack.ts'
import { soon, unaccounted } from '../waiting.ts'

const home = openOwnHome()
const scratch = mkdtempSync(join(tmpdir(), 'frameloop-scratch-'))
let stack: OwnStack | undefined

afterAll(async () => {
  await home[Symbol.asyncDispose]()
  rmSync(scratch, { recursive: true, force: true, maxRetries: 20, retryDelay: 200 })
})

const databaseOf = (running: OwnStack) => openPool(running.state.environment['DATABASE_URL'] ?? '', 'test', 2)
const mediaOf = async (sql: ReturnType<typeof databaseOf>): Promise<number> =>
  (await sql.query<{ n: number }>("select count(*)::int as n from media where camera_id = 'street' and status_rank >= 2")).rows[0]?.n ?? 0

test('a start after a kill -9 of everything loses nothing', async () => {
  const first = await startOwnStack(home, [])
  const before = databaseOf(first)
  await soon(async () => ((await mediaOf(before)) >= 30 ? true : undefined))
  await before.end()
  await first.killEverything()
  await soon(async () => (first.alive().length === 0 ? true : undefined))

  stack = await startOwnStack(home, [])
  expect(stack.printed()).not.toContain('ended what an earlier start left behind')
  const after = databaseOf(stack)
  const known = await mediaOf(after)
  expect(known).toBeGreaterThanOrEqual(30)
  await soon(async () => ((await mediaOf(after)) >= known + 10 ? true : undefined))
  await soon(async () => ((await unaccounted(after, 'street')) === 0 ? true : undefined))
  expect(await doubled(after)).toEqual([])
  await after.end()
})

test('when the command itself is killed with -9, none of its processes goes on', async () => {
  const running = stack as OwnStack
  process.kill(running.state.supervisor.pid, 'SIGKILL')
  await soon(async () => (running.alive().length === 0 ? true : undefined), 20_000)
})

test('Ctrl-C leaves nothing behind', async () => {
  stack = await startOwnStack(home, ['--no-demo'])
  await stack.end('SIGINT')
  expect(stack.alive()).toEqual([])
  expect(stack.printed()).toContain('[up] stopped')
})

test('a transaction whose producer went silent while Kafka was down holds nobody up for good', async () => {
  const folder = openHome(join(scratch, 'forgetful'))
  const { kafka = 0, controller = 0 } = await choosePorts(folder, ['kafka', 'controller'])
  const brokers = `127.0.0.1:${kafka}`
  // it gives up what is open sooner than it may take its own place again
  const settings = { 'transaction.abort.timed.out.transaction.cleanup.interval.ms': '500', 'broker.session.timeout.ms': '4000' }
  const program = await prepareKafka(folder, kafka, controller, kafka, { settings })
  const admin = openKafka(brokers, 'test', openLog('test', 'fatal')).admin()
  const producer = new rdkafka.Producer({ 'metadata.broker.list': brokers, 'transactional.id': 'silent', 'transaction.timeout.ms': 6_000 })
  const done = (act: (callback: (error: unknown) => void) => void): Promise<void> => new Promise((resolve, reject) => act((error) => (error ? reject(error) : resolve())))
  let supervisor = new Supervisor(folder, () => {})
  try {
    await supervisor.start(program)
    await createTopics(admin, [{ topic: 'open', numPartitions: 1 }])
    await done((callback) => producer.connect({}, callback))
    await done((callback) => producer.initTransactions(20_000, callback))
    const began = Date.now()
    await done((callback) => producer.beginTransaction(callback))
    producer.produce('open', 0, Buffer.from('a record'))
    await done((callback) => producer.flush(10_000, callback))
    expect((await readTransactionLog(brokers)).at(-1)?.state).toBe('Ongoing')
    const [{ pid = 0 } = {}] = readState<{ pid: number }[]>(folder, 'pids.json') ?? []
    expect(pid).toBeGreaterThan(1)
    process.kill(-pid, 'SIGKILL')
    await supervisor.stop()
    // its time is over when the broker begins
    await soon(async () => Date.now() - began > 7_000 || undefined)

    supervisor = new Supervisor(folder, () => {})
    await supervisor.start(program)
    const log = () => readTransactionLog(brokers).catch(() => [])
    await soon(async () => ((await log()).at(-1)?.state === 'CompleteAbort' ? true : undefined))
    const readable = async (): Promise<string | undefined> => (await admin.fetchTopicOffsets('open'))[0]?.high
    // the broker has called it done, and lets nobody past it
    expect(await readable()).toBe('0')
    expect(await endHangingTransactions(brokers, openLog('test', 'fatal'))).toEqual(['open partition 0 (aborted)'])
    expect(await readable()).toBe('2')
  } finally {
    await Promise.all([admin.disconnect(), done((callback) => producer.disconnect(1_000, callback)).catch(() => {})])
    await supervisor.stop()
  }
})

const fails = (args: readonly string[]): Promise<string> =>
  startOwnStack(home, args).then(
    () => 'it started',
    (thrown: Error) => thrown.message,
  )

test('a second start while the first one is at it is refused, and Ctrl-C ends a start that is not ready', async () => {
  const first = fails(['--no-demo'])
  const read = <Value>(name: string): Value | undefined => readState<Value>(openHome(home.folder), name)
  // something of it runs
  await soon(async () => ((read<object[]>('pids.json') ?? []).length > 0 && (runningSupervisor(openHome(home.folder))?.pid ?? 0) > 0 ? true : undefined))
  const { pid = 0 } = runningSupervisor(openHome(home.folder)) ?? {}
  expect(await fails(['--no-demo'])).toContain(`frameloop: frameloop is being started or stopped here by process ${pid}\n`)
  const since = Date.now()
  process.kill(pid, 'SIGINT')
  expect(await first).toMatch(/ended with 0:[\s\S]*\[up\] stopping …[\s\S]*\[up\] stopped/)
  expect((read<{ pid: number; ticks: string }[]>('pids.json') ?? []).filter((one) => isSameProcess(one.pid, one.ticks))).toEqual([])
  expect(Date.now() - since).toBeLessThan(40_000)
})

test('a port that was asked for and is taken is named, with what to do, and nothing is left running', async () => {
  const server = createServer()
  const port = await new Promise<number>((resolve) => server.listen(0, '127.0.0.1', () => resolve((server.address() as { port: number }).port)))
  expect(await fails(['--no-demo', '--port', String(port)])).toMatch(new RegExp(`ended with 1:\nframeloop: Port ${port} \\(--port\\) is taken by another program\n.+`))
  await new Promise((resolve) => server.close(resolve))
})

test('a wrong zone file is told before anything starts, with every problem', async () => {
  const file = join(scratch, 'zones.json')
  writeFileSync(file, JSON.stringify([{ zone: 'a b', x: 0, y: 0, width: 10, height: 10, pictureWidth: 5, pictureHeight: 20 }]))
  const said = await fails(['--footage', join(root, '.frameloop/tools/footage/vtest.avi'), '--zones', file])
  expect(said).toContain('zone 1: "zone" must be a name')
  expect(said).toContain('reaches out of its picture')
  expect(said).not.toContain('ready')
})
