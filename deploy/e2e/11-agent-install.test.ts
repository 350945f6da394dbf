/** The agent as somebody gets it: one tarball, installed in an empty folder, set up, checked, run, looked at. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { AgentReported } from '@frameloop/schemas/events'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { root } from '../src/home.ts'
import { freePort } from './network-camera.ts'
import { frameloop, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

const run = promisify(execFile)
const folder = mkdtempSync(join(tmpdir(), 'frameloop-install-'))
const bin = join(folder, 'node_modules/.bin/frameloop-agent')
const config = join(folder, 'agent.yaml')
const began = new Date().toISOString()
const footage = join(root, '.frameloop/tools/footage/vtest.avi')
const keys = { S3_ACCESS_KEY_ID: state.environment['AWS_ACCESS_KEY_ID'] ?? '', S3_SECRET_ACCESS_KEY: state.environment['AWS_SECRET_ACCESS_KEY'] ?? '' }
// nothing of this checkout may be found by accident
const env = { PATH: process.env['PATH'], HOME: folder, ...keys }
let agent: ChildProcess | undefined
let said = ''

const command = async (...args: string[]): Promise<{ readonly code: number; readonly out: string; readonly error: string }> => {
  try {
    const { stdout, stderr } = await run(bin, args, { env, cwd: folder, maxBuffer: 64_000_000 })
    return { code: 0, out: stdout, error: stderr }
  } catch (thrown) {
    const failed = thrown as { code: number; stdout: string; stderr: string }
    return { code: failed.code, out: failed.stdout, error: failed.stderr }
  }
}

const bytesUnder = (path: string): number =>
  readdirSync(path, { recursive: true, withFileTypes: true }).reduce((sum, file) => sum + (file.isFile() ? statSync(join(file.parentPath, file.name)).size : 0), 0)

beforeAll(async () => {
  const { stdout } = await run('npm', ['pack', '--silent', '-w', '@frameloop/edge-agent', '--pack-destination', folder], { cwd: root })
  await run('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts', '--prefix', folder, join(folder, stdout.trim())], { cwd: folder })
})

afterAll(async () => {
  const ended = agent && agent.exitCode === null ? new Promise((resolve) => agent?.once('exit', resolve)) : undefined
  agent?.kill('SIGTERM')
  await ended
  rmSync(folder, { recursive: true, force: true })
  await pool.end()
})

test('it is small, needs no compiler and holds no sources', () => {
  expect(bytesUnder(join(folder, 'node_modules'))).toBeLessThan(120_000_000)
  const files = readdirSync(join(folder, 'node_modules'), { recursive: true }) as string[]
  expect(files.filter((file) => /\.jar$|\.py$|tsx|node-gyp/.test(file))).toEqual([])
})

test('init writes a file that check understands; what is wrong is told with what to do', async () => {
  const { endpoints } = state
  const port = await freePort()
  const cameras = ['one', 'two', 'three', 'four'].flatMap((name) => ['--camera', `${name}-installed=file:${footage}`])
  const asked = ['init', '--agent', 'agent-installed', '--spool', join(folder, 'spool'), '--kafka', endpoints['kafka'] ?? '']
  expect(await command(...asked, '--registry', endpoints['schemaRegistry'] ?? '', '--s3', 'http://127.0.0.1:1', ...cameras)).toMatchObject({ code: 0 })
  expect(statSync(config).mode & 0o777).toBe(0o600)
  writeFileSync(config, `port: ${port}\n${readFileSync(config, 'utf8')}`)
  const wrong = await command('check')
  expect(wrong.code).toBe(1)
  expect(wrong.out).toMatch(/wrong {2}S3 .*ECONNREFUSED/)
  expect(wrong.out).toContain('S3: check s3.endpoint and the way there')
  writeFileSync(config, readFileSync(config, 'utf8').replace('http://127.0.0.1:1', endpoints['s3'] ?? ''))
  // a disk or a clock that is slow to answer is something to look at, and passes
  const right = await soon(async () => {
    const found = await command('check')
    return found.out.includes('all is well') ? found : undefined
  })
  expect(right.out).toMatch(/good {2}camera one-installed +768x576 jpg/)
  expect(right).toMatchObject({ code: 0 })
  // what it put to see whether it may is nobody's orphan
  const soonAfter = new Date(Date.now() + 60_000).toISOString()
  const found = await frameloop('verify', '--from', began, '--to', soonAfter).catch((thrown: unknown) => (thrown as { stdout: string }).stdout)
  expect(found).toContain('looked at')
  expect(found).not.toContain('_checks')
  expect((await command('init')).error).toContain('is there already; --force writes over it')
})

test('it runs with four cameras, says how it does, and its frames reach the catalog', async () => {
  agent = spawn(bin, ['run'], { env, cwd: folder, stdio: ['ignore', 'pipe', 'pipe'] })
  for (const stream of [agent.stdout, agent.stderr])
    stream?.on('data', (chunk: Buffer) => {
      said += chunk.toString('utf8')
    })
  const report = async (): Promise<AgentReported | undefined> => {
    const { code, out } = await command('status', '--json')
    return code === 0 ? (JSON.parse(out) as AgentReported) : undefined
  }
  await soon(async () => ((await report())?.cameras.filter(({ highestSeq }) => highestSeq > 10).length === 4 ? true : undefined))
  const resident = Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${agent.pid}/status`, 'utf8'))?.[1]) * 1024
  process.stdout.write(`agent with four cameras: ${Math.round(resident / 1e6)} MB resident, ${Math.round(bytesUnder(join(folder, 'node_modules')) / 1e6)} MB installed\n`)
  // 150 MB are the aim, and printed; what is asserted is that nothing piles up
  expect(resident).toBeLessThan(220_000_000)
  const { out } = await command('status')
  expect(out).toMatch(/one-installed +streaming/)
  await soon(async () => one("select 1 as ok from features where camera_id = 'one-installed' limit 1"))
})

test('the next picture is kept on command, and a snapshot is a picture', async () => {
  expect(await command('capture', 'two-installed')).toMatchObject({ code: 0, out: expect.stringContaining('is kept') as string })
  expect((await command('capture', 'nobody')).error).toContain('there is no camera nobody')
  const { stdout } = await run(bin, ['snapshot', 'one-installed'], { env, cwd: folder, encoding: 'buffer', maxBuffer: 16_000_000 })
  expect(stdout.subarray(0, 3).toString('hex')).toBe('ffd8ff')
})

test('its spool can be looked at while it runs, and proves that every frame is somewhere; SIGTERM ends it cleanly', async () => {
  expect(await command('spool', 'verify')).toMatchObject({ code: 0, out: expect.stringContaining('clean: captured = delivered + waiting + lost') as string })
  const ended = new Promise((resolve) => agent?.once('exit', resolve))
  agent?.kill('SIGTERM')
  expect(await ended).toBe(0)
  expect(said).not.toContain(keys.S3_SECRET_ACCESS_KEY)
  expect((await command('status')).error).toContain('No agent answers')
  const { out } = await command('spool', 'list', '--json')
  const waiting = out.trim() === '' ? 0 : out.trim().split('\n').length
  const exported = join(folder, 'exported')
  expect(await command('spool', 'export', exported)).toMatchObject({ code: 0 })
  expect(readdirSync(exported)).toHaveLength(waiting)
})

test('a service unit is printed with its own account, a watchdog and few rights', async () => {
  const { out, code } = await command('install-service', '--print')
  expect(code).toBe(0)
  for (const line of ['Type=notify', 'WatchdogSec=60', 'User=frameloop-agent', 'ProtectSystem=strict', 'Restart=always', `ReadWritePaths=${join(folder, 'spool')}`])
    expect(out).toContain(line)
})
