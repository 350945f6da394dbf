/**
 * Bad days of an agent: killed while it uploads, a disk that is full, two of one name, few descriptors, a wrong clock, and a
 * camera that freezes, changes its password or comes late. The stack is the cloud; its broker and its object store stand
 * behind proxies. After each day everything captured is accounted for.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { randomOf } from '@frameloop/kit/random'
import { until } from '@frameloop/kit/retry'
import type { AgentReported } from '@frameloop/schemas/events'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { freePort, openNetworkCamera } from '../e2e/network-camera.ts'
import { type OwnStack, openOwnHome, startOwnStack } from '../e2e/own-stack.ts'
import { build } from '../src/home.ts'
import { overdue, readLedger, showLedger } from '../src/ledger.ts'
import { type FaultProxy, openProxy } from './proxy.ts'

const run = promisify(execFile)
const home = openOwnHome()
const folder = mkdtempSync(join(tmpdir(), 'frameloop-agent-faults-'))
const portOf = (part: string) => (): number => (JSON.parse(readFileSync(join(home.folder, 'ports.json'), 'utf8')) as Record<string, number>)[part] ?? 0
let proxies: Readonly<Record<'kafka' | 's3', FaultProxy>>
let stack: OwnStack
let pool: Pool
const report: string[] = []

beforeAll(async () => {
  proxies = { kafka: await openProxy('kafka', portOf('kafka')), s3: await openProxy('http', portOf('s3')) }
  stack = await startOwnStack(home, ['--no-demo'], { FRAMELOOP_VIA: JSON.stringify({ kafka: proxies.kafka.port, s3: proxies.s3.port }) })
  pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
})

afterAll(async () => {
  process.stdout.write(`${report.join('\n')}\n`)
  await pool.end()
  await stack.end('SIGTERM')
  for (const proxy of Object.values(proxies)) await proxy.close()
  rmSync(folder, { recursive: true, force: true })
  home[Symbol.dispose]()
})

interface AgentUnderTest {
  start(options?: { readonly before?: readonly string[]; readonly node?: readonly string[] }): ChildProcess
  /** Writes its configuration anew; it follows. */
  configure(cameras: readonly object[]): void
  status(): Promise<AgentReported | undefined>
  said(): string
}

async function openAgent(name: string, cameras: readonly object[], spool: object = {}): Promise<AgentUnderTest> {
  const { endpoints, environment } = stack.state
  const [file, port] = [join(folder, `${name}.yaml`), await freePort()]
  let said = ''
  const configure = (now: readonly object[]): void =>
    writeFileSync(
      file,
      JSON.stringify({
        ...{
          agent: name,
          port,
          spool: { folder: join(folder, name), ...spool },
          kafka: { brokers: [endpoints['kafka'] ?? ''] },
          registry: { url: endpoints['schemaRegistry'] ?? '' },
        },
        s3: { endpoint: endpoints['s3'] ?? '', accessKeyId: '${AWS_ACCESS_KEY_ID}', secretAccessKey: '${AWS_SECRET_ACCESS_KEY}' },
        cameras: now,
      }),
    )
  configure(cameras)
  return {
    configure,
    said: () => said,
    start({ before = [], node = [] } = {}) {
      const [command = '', ...args] = [...before, process.execPath, ...node, join(build, 'agent.mjs'), 'run', '--config', file]
      const child = spawn(command, args, { env: { ...process.env, ...environment }, stdio: ['ignore', 'pipe', 'pipe'] })
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (chunk: Buffer) => {
          said += chunk.toString('utf8')
        })
      return child
    },
    status: () =>
      fetch(`http://127.0.0.1:${port}/status`)
        .then((response) => response.json() as Promise<AgentReported>)
        .catch(() => undefined),
  }
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill(signal)
  await ended
}

/** Nothing waits any more, nothing is overdue, nothing came twice. */
async function expectSound(agent: AgentUnderTest, within = 180_000): Promise<void> {
  const isEmpty = await until(async () => (await agent.status())?.spoolFrames === 0 || undefined, within, 500)
  expect(isEmpty, `its spool is empty again; ${(await agent.status())?.spoolFrames} frames wait\n${agent.said().slice(-2_500)}`).toBe(true)
  const clean = await until(async () => overdue(await readLedger(pool)).length === 0 || undefined, within, 1_000)
  expect(clean ? '' : showLedger(await readLedger(pool))).toBe('')
  const doubled = await pool.query("select subject_id from hops where topic = 'media.validated' group by subject_id having count(*) > 1")
  expect(doubled.rows).toEqual([])
}

const capturedBy = async (agentId: string): Promise<number> =>
  Number((await pool.query<{ n: string }>('select coalesce(sum(highest_seq), 0) as n from captures where agent_id = $1', [agentId])).rows[0]?.n ?? 0)
const simulated = (id: string, seed: number, framesPerSecond = 10): object => ({ id, address: `simulator:?seed=${seed}`, framesPerSecond })

test('killed with -9 two hundred times while it uploads, each frame that was captured arrives, once', async () => {
  const agent = await openAgent('killed', [simulated('killed-a', 1, 20), simulated('killed-b', 2, 20)])
  const random = randomOf(5)
  // slow enough that a kill falls into an upload
  proxies.s3.trouble = { kind: 'delay', ms: 30 }
  let lives = 0
  for (let seed = 0; seed < 200; seed += 1) {
    const child = agent.start()
    const captures = await until(async () => ((await agent.status())?.cameras.some(({ highestSeq }) => highestSeq > 0) ? true : undefined), 20_000, 20)
    expect(captures).toBe(true)
    await sleep(random() * 600)
    await end(child, 'SIGKILL')
    lives += 1
  }
  proxies.s3.trouble = { kind: 'none' }
  const last = agent.start()
  await expectSound(agent)
  await end(last, 'SIGTERM')
  const { stdout } = await run(process.execPath, [join(build, 'agent.mjs'), 'spool', 'verify', '--config', join(folder, 'killed.yaml')], {
    env: { ...process.env, ...stack.state.environment },
  })
  expect(stdout).toMatch(/accounted|every/i)
  report.push(`killed ${lives} times while uploading: ${await capturedBy('killed')} frames captured, all accounted for`)
}, 900_000)

test('a disk of 64 MB that fills up while the cloud is away: the newest are kept evenly, each one given up is told, and it goes on', async ({ skip }) => {
  const disk = join(folder, 'small-disk')
  mkdirSync(disk)
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', disk]).then(
    () => true,
    () => false,
  )
  if (!mounted) skip('no right to mount a file system here')
  const cameras = Array.from({ length: 4 }, (_, n) => simulated(`small-${n}`, n, 15))
  const agent = await openAgent('small', cameras, { folder: join(disk, 'spool'), capacity: '100 MB', keepFree: '6 MB' })
  try {
    for (const part of ['kafka', 's3'] as const) proxies[part].trouble = { kind: 'black hole' }
    const child = agent.start()
    const evicts = await until(() => agent.said().includes('"reason":"evicted"') || undefined, 240_000, 500)
    expect(evicts).toBe(true)
    // for as long again it takes new frames, and the disk stays as free as was asked for
    const before = (await agent.status())?.cameras.map(({ highestSeq }) => highestSeq) ?? []
    let leastFree = Number.POSITIVE_INFINITY
    for (let second = 0; second < 40; second += 1) {
      await sleep(1_000)
      const { bavail, bsize } = statfsSync(disk)
      leastFree = Math.min(leastFree, bavail * bsize)
    }
    const after = (await agent.status())?.cameras.map(({ highestSeq }) => highestSeq) ?? []
    for (const [at, seq] of after.entries()) expect(seq - (before[at] ?? 0)).toBeGreaterThan(300)
    expect(leastFree).toBeGreaterThan(5_000_000)
    for (const part of ['kafka', 's3'] as const) proxies[part].trouble = { kind: 'none' }
    agent.configure([simulated('small-still', 1, 0.1)])
    await expectSound(agent)
    await end(child, 'SIGTERM')
    const { rows } = await pool.query<{ lost: number }>("select coalesce(sum(seq_to - seq_from + 1), 0)::int as lost from losses where camera_id like 'small-%'")
    expect(rows[0]?.lost).toBeGreaterThan(100)
    report.push(`a disk of 64 MB: ${await capturedBy('small')} frames captured, ${rows[0]?.lost} given up and told, at least ${(leastFree / 1e6).toFixed(1)} MB stayed free`)
  } finally {
    for (const part of ['kafka', 's3'] as const) proxies[part].trouble = { kind: 'none' }
    await run('umount', ['-l', disk])
  }
}, 600_000)

test('two agents of one name on two machines harm nothing', async () => {
  const agents = [await openAgent('twin', [simulated('twin-a', 4)]), await openAgent('twin-elsewhere', [simulated('twin-b', 5)])]
  // the second one by the first one's name
  const [first, second] = agents as [AgentUnderTest, AgentUnderTest]
  const file = join(folder, 'twin-elsewhere.yaml')
  writeFileSync(file, readFileSync(file, 'utf8').replace('"agent":"twin-elsewhere"', '"agent":"twin"'))
  const children = agents.map((agent) => agent.start())
  await sleep(10_000)
  for (const child of children) await end(child, 'SIGTERM')
  const again = agents.map((agent) => agent.start())
  await expectSound(first)
  await expectSound(second)
  for (const child of again) await end(child, 'SIGTERM')
  expect(await capturedBy('twin')).toBeGreaterThan(100)
}, 300_000)

test('with 256 descriptors sixteen cameras are captured and uploaded', async () => {
  const cameras = Array.from({ length: 16 }, (_, n) => simulated(`few-${n}`, n, 2))
  const agent = await openAgent('few', cameras)
  const child = agent.start({ before: ['prlimit', '--nofile=256:256'] })
  const captured = await until(async () => ((await agent.status())?.cameras.filter(({ highestSeq }) => highestSeq > 10).length === 16 ? true : undefined), 60_000, 500)
  expect(captured).toBe(true)
  expect(agent.said()).not.toContain('EMFILE')
  agent.configure(cameras.slice(0, 1))
  await expectSound(agent)
  await end(child, 'SIGTERM')
}, 300_000)

test('a clock that is a day ahead is said, and its frames arrive', async () => {
  const shift = join(folder, 'shift.mjs')
  writeFileSync(
    shift,
    'const Real = Date; globalThis.Date = class extends Real { constructor(...args) { super(...(args.length ? args : [Date.now()])) } static now() { return Real.now() + 86400000 } }\n',
  )
  const agent = await openAgent('ahead', [simulated('ahead', 6)])
  const child = agent.start({ node: ['--import', shift] })
  const said = await until(async () => (((await agent.status())?.clockSkewMs ?? 0) > 80_000_000 ? true : undefined), 60_000, 500)
  expect(said).toBe(true)
  agent.configure([simulated('ahead-still', 6, 0.2)])
  const arrived = await until(
    async () => ((await pool.query("select 1 from media where camera_id = 'ahead' and status_rank >= 2 limit 1")).rowCount ? true : undefined),
    60_000,
    500,
  )
  expect(arrived).toBe(true)
  await end(child, 'SIGTERM')
}, 300_000)

test('a network camera that comes late, freezes, and changes its password', async () => {
  const camera = await openNetworkCamera(folder)
  const settings = { id: 'moody', address: camera.address, username: camera.username, framesPerSecond: 5 }
  const agent = await openAgent('moody', [{ ...settings, password: 'first' }])
  const child = agent.start()
  const becomes = async (state: string): Promise<string> => {
    const seen = await until(async () => (await agent.status())?.cameras.find((one) => one.cameraId === 'moody' && one.state === state), 60_000, 100)
    return seen?.message ?? `never ${state}`
  }
  try {
    expect(await becomes('backing off')).toContain('nothing answers at the camera address')
    await camera.start('first')
    expect(await becomes('streaming')).toBe('')
    camera.signal('SIGSTOP')
    expect(await becomes('stalled')).toContain('although nothing else is wrong')
    camera.signal('SIGCONT')
    expect(await becomes('streaming')).toBe('')
    camera.signal('SIGKILL')
    await camera.start('second')
    expect(await becomes('refused')).toContain('refuses the user name or password (401)')
    // it does not hammer: half a minute until the next attempt
    const attempts = (): number => agent.said().match(/"was":"refused"/g)?.length ?? 0
    const before = attempts()
    await sleep(10_000)
    expect(attempts() - before).toBe(0)
    agent.configure([{ ...settings, password: 'second' }])
    expect(await becomes('streaming')).toBe('')
    expect(agent.said()).not.toMatch(/first|second/)
  } finally {
    camera.signal('SIGKILL')
    await end(child, 'SIGTERM')
  }
}, 300_000)

test('Kafka is a black hole for 40 s, then the object store: what was captured meanwhile arrives', async () => {
  const agent = await openAgent('cut-off', [simulated('cut-off', 8)])
  const child = agent.start()
  for (const part of ['kafka', 's3'] as const) {
    const { fired } = proxies[part]
    const captured = async (): Promise<number> => (await agent.status())?.cameras[0]?.highestSeq ?? 0
    const before = await captured()
    proxies[part].trouble = { kind: 'black hole' }
    await sleep(40_000)
    proxies[part].trouble = { kind: 'none' }
    expect(proxies[part].fired).toBeGreaterThan(fired)
    expect((await captured()) - before).toBeGreaterThan(300)
  }
  agent.configure([simulated('cut-off-still', 8, 0.1)])
  await expectSound(agent)
  await end(child, 'SIGTERM')
}, 400_000)
