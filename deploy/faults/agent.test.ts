/**
 * Bad days of an agent: killed while it uploads, a disk that is full, two of one name, few descriptors, a wrong clock, and a
 * camera that freezes, changes its password, comes late or through a thin link. After each day everything captured is
 * accounted for.
 */
import { execFile } from 'node:child_process'
import { mkdirSync, readFileSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { randomOf } from '@frameloop/kit/random'
import { until } from '@frameloop/kit/retry'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { openNetworkCamera } from '../e2e/network-camera.ts'
import { endChild } from '../e2e/own-stack.ts'
import { build } from '../src/home.ts'
import { type AgentUnderTest, type Lab, openLab, simulated } from './agent-lab.ts'
import { openProxy } from './proxy.ts'

const run = promisify(execFile)
const report: string[] = []
let lab: Lab

beforeAll(async () => {
  lab = await openLab()
})

afterAll(async () => {
  process.stdout.write(`${report.join('\n')}\n`)
  await lab.close()
})

test('killed with -9 two hundred times while it uploads, each frame that was captured arrives, once', async () => {
  const agent = await lab.openAgent('killed', [simulated('killed-a', 1, 20), simulated('killed-b', 2, 20)])
  const random = randomOf(5)
  // slow enough that a kill falls into an upload
  lab.proxies.s3.trouble = { kind: 'delay', ms: 30 }
  let lives = 0
  for (let seed = 0; seed < 200; seed += 1) {
    const child = agent.start()
    const captures = await until(async () => ((await agent.status())?.cameras.some(({ highestSeq }) => highestSeq > 0) ? true : undefined), 20_000, 20)
    expect(captures).toBe(true)
    await sleep(random() * 600)
    await endChild(child, 'SIGKILL')
    lives += 1
  }
  lab.proxies.s3.trouble = { kind: 'none' }
  const last = agent.start()
  await lab.expectSound(agent)
  await endChild(last, 'SIGTERM')
  const { stdout } = await run(process.execPath, [join(build, 'agent.mjs'), 'spool', 'verify', '--config', join(lab.folder, 'killed.yaml')], {
    env: { ...process.env, ...lab.stack.state.environment },
  })
  expect(stdout).toContain('clean: captured = ')
  report.push(`killed ${lives} times while uploading: ${await lab.capturedBy('killed')} frames captured, all accounted for`)
}, 900_000)

test('a disk of 64 MB that fills up while the cloud is away: the newest are kept evenly, each one given up is told, and it goes on', async ({ skip }) => {
  const disk = join(lab.folder, 'small-disk')
  mkdirSync(disk)
  const mounted = await run('mount', ['-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', disk]).then(
    () => true,
    () => false,
  )
  if (!mounted) skip('no right to mount a file system here')
  const cameras = Array.from({ length: 4 }, (_, n) => simulated(`small-${n}`, n, 15))
  const agent = await lab.openAgent('small', cameras, { folder: join(disk, 'spool'), capacity: '100 MB', keepFree: '6 MB' })
  try {
    for (const part of ['kafka', 's3'] as const) lab.proxies[part].trouble = { kind: 'black hole' }
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
    for (const part of ['kafka', 's3'] as const) lab.proxies[part].trouble = { kind: 'none' }
    agent.configure([simulated('small-still', 1, 0.1)])
    await lab.expectSound(agent)
    await endChild(child, 'SIGTERM')
    const { rows } = await lab.pool.query<{ lost: number }>("select coalesce(sum(seq_to - seq_from + 1), 0)::int as lost from losses where camera_id like 'small-%'")
    expect(rows[0]?.lost).toBeGreaterThan(100)
    report.push(`a disk of 64 MB: ${await lab.capturedBy('small')} frames captured, ${rows[0]?.lost} given up and told, at least ${(leastFree / 1e6).toFixed(1)} MB stayed free`)
  } finally {
    for (const part of ['kafka', 's3'] as const) lab.proxies[part].trouble = { kind: 'none' }
    await run('umount', ['-l', disk])
  }
}, 600_000)

test('two agents of one name on two machines harm nothing', async () => {
  const agents = [await lab.openAgent('twin', [simulated('twin-a', 4)]), await lab.openAgent('twin-elsewhere', [simulated('twin-b', 5)])]
  // the second one by the first one's name
  const [first, second] = agents as [AgentUnderTest, AgentUnderTest]
  const file = join(lab.folder, 'twin-elsewhere.yaml')
  writeFileSync(file, readFileSync(file, 'utf8').replace('"agent":"twin-elsewhere"', '"agent":"twin"'))
  const children = agents.map((agent) => agent.start())
  await sleep(10_000)
  for (const child of children) await endChild(child, 'SIGTERM')
  const again = agents.map((agent) => agent.start())
  await lab.expectSound(first)
  await lab.expectSound(second)
  for (const child of again) await endChild(child, 'SIGTERM')
  expect(await lab.capturedBy('twin')).toBeGreaterThan(100)
}, 300_000)

test('with 256 descriptors and 512 MB sixteen cameras are captured and uploaded', async () => {
  const cameras = Array.from({ length: 16 }, (_, n) => simulated(`few-${n}`, n, 2))
  const agent = await lab.openAgent('few', cameras)
  const child = agent.start({ before: ['prlimit', '--nofile=256:256'] })
  const captured = await until(async () => ((await agent.status())?.cameras.filter(({ highestSeq }) => highestSeq > 10).length === 16 ? true : undefined), 60_000, 500)
  expect(captured).toBe(true)
  expect(agent.said()).not.toContain('EMFILE')
  const peak = Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8'))?.[1]) / 1024
  report.push(`sixteen cameras, 256 descriptors: at most ${Math.round(peak)} MB resident`)
  expect(peak).toBeLessThan(512)
  agent.configure(cameras.slice(0, 1))
  await lab.expectSound(agent)
  await endChild(child, 'SIGTERM')
}, 300_000)

test('a clock that is a day ahead is said, and its frames arrive', async () => {
  const shift = join(lab.folder, 'shift.mjs')
  writeFileSync(
    shift,
    'const Real = Date; globalThis.Date = class extends Real { constructor(...args) { super(...(args.length ? args : [Date.now()])) } static now() { return Real.now() + 86400000 } }\n',
  )
  const agent = await lab.openAgent('ahead', [simulated('ahead', 6)])
  const child = agent.start({ node: ['--import', shift] })
  const said = await until(async () => (((await agent.status())?.clockSkewMs ?? 0) > 80_000_000 ? true : undefined), 60_000, 500)
  expect(said).toBe(true)
  agent.configure([simulated('ahead-still', 6, 0.2)])
  const arrived = await until(
    async () => ((await lab.pool.query("select 1 from media where camera_id = 'ahead' and status_rank >= 2 limit 1")).rowCount ? true : undefined),
    60_000,
    500,
  )
  expect(arrived).toBe(true)
  await endChild(child, 'SIGTERM')
}, 300_000)

test('a network camera that comes late, freezes, and changes its password', async () => {
  const camera = await openNetworkCamera(lab.folder)
  const settings = { id: 'moody', address: camera.address, username: camera.username, framesPerSecond: 5 }
  const agent = await lab.openAgent('moody', [{ ...settings, password: 'secret-of-may' }])
  const child = agent.start()
  const becomes = async (state: string): Promise<string> => {
    const seen = await until(async () => (await agent.status())?.cameras.find((one) => one.cameraId === 'moody' && one.state === state), 60_000, 100)
    return seen?.message ?? `never ${state}`
  }
  try {
    expect(await becomes('backing off')).toContain('nothing answers at the camera address')
    await camera.start('secret-of-may')
    expect(await becomes('streaming')).toBe('')
    camera.signal('SIGSTOP')
    expect(await becomes('stalled')).toContain('although nothing else is wrong')
    camera.signal('SIGCONT')
    expect(await becomes('streaming')).toBe('')
    camera.signal('SIGKILL')
    await camera.start('secret-of-june')
    expect(await becomes('refused')).toContain('refuses the user name or password (401)')
    // it does not hammer: half a minute until the next attempt
    const attempts = (): number => agent.said().match(/"was":"refused"/g)?.length ?? 0
    const before = attempts()
    await sleep(10_000)
    expect(attempts() - before).toBe(0)
    agent.configure([{ ...settings, password: 'secret-of-june' }])
    expect(await becomes('streaming')).toBe('')
    expect(agent.said()).not.toMatch(/secret-of/)
  } finally {
    camera.signal('SIGKILL')
    await endChild(child, 'SIGTERM')
  }
}, 300_000)

test('a link too thin for its stream is said with what it gives, and well again when it is', async () => {
  const camera = await openNetworkCamera(lab.folder)
  const link = await openProxy('tcp', () => Number(new URL(camera.address).port))
  const address = camera.address.replace(/:\d+\//, `:${link.port}/`)
  const agent = await lab.openAgent('thin', [{ id: 'thin', address, username: camera.username, password: 'x', framesPerSecond: 10 }])
  const says = (message: RegExp): Promise<true | undefined> =>
    until(async () => ((await agent.status())?.cameras.some((one) => one.state === 'streaming' && message.test(one.message)) ? true : undefined), 60_000, 200)
  await camera.start('x')
  const child = agent.start()
  try {
    expect(await says(/^$/)).toBe(true)
    link.trouble = { kind: 'thin', bytesPerSecond: 40_000 }
    expect(await says(/^it gives [\d.]+ of 10 pictures a second$/)).toBe(true)
    link.trouble = { kind: 'none' }
    expect(await says(/^$/)).toBe(true)
  } finally {
    camera.signal('SIGKILL')
    await endChild(child, 'SIGTERM')
    await link.close()
  }
}, 300_000)

test('Kafka is a black hole for 40 s, then the object store: what was captured meanwhile arrives', async () => {
  const agent = await lab.openAgent('cut-off', [simulated('cut-off', 8)])
  const child = agent.start()
  for (const part of ['kafka', 's3'] as const) {
    const { fired } = lab.proxies[part]
    const captured = async (): Promise<number> => (await agent.status())?.cameras[0]?.highestSeq ?? 0
    const before = await captured()
    lab.proxies[part].trouble = { kind: 'black hole' }
    await sleep(40_000)
    lab.proxies[part].trouble = { kind: 'none' }
    expect(lab.proxies[part].fired).toBeGreaterThan(fired)
    expect((await captured()) - before).toBeGreaterThan(300)
  }
  agent.configure([simulated('cut-off-still', 8, 0.1)])
  await lab.expectSound(agent)
  await endChild(child, 'SIGTERM')
}, 400_000)
