/** A stack of its own for a test or a benchmark, started as a person starts it, in a folder that is thrown away afterwards. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Pool } from '@frameloop/kit/postgres'
import { isSameProcess } from '@frameloop/kit/process-identity'
import type { Ms } from '@frameloop/kit/units'
import { root } from '../src/home.ts'
import type { StackState } from '../src/up.ts'

export interface OwnHome {
  readonly folder: string
  /** Commands that run here. */
  readonly commands: Set<ChildProcess>
  /** Ends what still runs in it, also a stack whose start was given up, and removes it. */
  [Symbol.asyncDispose](): Promise<void>
}

export function openOwnHome(): OwnHome {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-own-'))
  // PostgreSQL runs as another account when we are root
  chmodSync(folder, 0o755)
  const commands = new Set<ChildProcess>()
  return {
    folder,
    commands,
    async [Symbol.asyncDispose]() {
      await Promise.all([...commands].map((child) => endChild(child, 'SIGTERM')))
      // a start that was given up may have begun to format a disk, which ends by itself
      rmSync(folder, { recursive: true, force: true, maxRetries: 20, retryDelay: 200 })
    },
  }
}

/** Sends the signal and waits for the end; of one that has ended already nothing. */
export async function endChild(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  child.kill(signal)
  await ended
}

export interface OwnStack {
  /** From the command to its line "ready". */
  readonly readyMs: Ms
  /** What each part and process took, as the command prints it. */
  readonly parts: Readonly<Record<string, Ms>>
  readonly state: StackState
  readonly processes: readonly { readonly name: string; readonly pid: number }[]
  /** All that the command has printed so far. */
  printed(): string
  /** Sends the signal to the command and waits until it has ended. */
  end(signal: NodeJS.Signals): Promise<void>
  /** The pid that a program has now; it changes with every restart. */
  pidOf(name: string): number
  /** Names of its processes that still run. */
  alive(): readonly string[]
  /** SIGKILL to the supervisor, its guard and every process at once, as a power cut does. */
  killEverything(): Promise<void>
}

/** Frames about which more was said on predictions.made than there are answers: a frame, zone and version have one. */
export async function doubledAnswers(sql: Pool): Promise<readonly object[]> {
  const { rows } = await sql.query<object>(
    `select subject_id, said, answers from (select subject_id, count(*)::int as said from hops where topic = 'predictions.made' group by subject_id) h
     join lateral (select count(*)::int as answers from predictions p where p.frame_id = h.subject_id) a on true where said > answers`,
  )
  return rows
}

/** What came out of a stage twice, or lies in the catalog twice: nothing, or the proof of it. */
export async function doubled(sql: Pool): Promise<readonly object[]> {
  const media = await sql.query<object>('select camera_id, epoch, seq, count(*)::int from media group by camera_id, epoch, seq having count(*) > 1')
  const records = await sql.query<object>(
    "select topic, subject_id, count(*)::int from hops where topic in ('media.validated', 'frames.extracted', 'features.prepared') group by topic, subject_id having count(*) > 1",
  )
  return [...media.rows, ...records.rows, ...(await doubledAnswers(sql))]
}

function readJson<Value>(file: string): Value {
  return JSON.parse(readFileSync(file, 'utf8')) as Value
}

const shown = / {2}(\w+) +ready after ([\d.]+) (ms|s)/g

export async function startOwnStack(home: OwnHome, args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<OwnStack> {
  const since = performance.now()
  const child: ChildProcess = spawn(process.execPath, [join(root, 'deploy/bin/frameloop.mjs'), 'up', ...args], {
    env: { ...process.env, ...env, FRAMELOOP_HOME: home.folder },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  home.commands.add(child)
  let printed = ''
  const ended = new Promise<void>((resolve) =>
    child.once('exit', () => {
      home.commands.delete(child)
      resolve()
    }),
  )
  await new Promise<void>((resolve, reject) => {
    const read = (chunk: Buffer): void => {
      printed += chunk.toString('utf8')
      if (/ready after [^\n]*Stop with/.test(printed)) resolve()
    }
    child.stdout?.on('data', read)
    child.stderr?.on('data', read)
    child.once('exit', (code) => {
      const [, part = ''] = /: (\w+) (?:was not ready|ended \d+ times)/.exec(printed) ?? []
      const log = join(home.folder, 'logs', `${part}.log`)
      const said = existsSync(log) ? `its log ends with\n${readFileSync(log, 'utf8').split('\n').slice(-40).join('\n')}` : ''
      reject(new Error(`frameloop up ended with ${code}:\n${printed}${said}`))
    })
  })
  const readyMs = performance.now() - since
  const parts: Record<string, Ms> = {}
  for (const [, name = '', number, unit] of printed.matchAll(shown)) parts[name] = Number(number) * (unit === 's' ? 1000 : 1)
  const processes = readJson<{ name: string; pid: number; ticks: string }[]>(join(home.folder, 'pids.json'))
  return {
    readyMs,
    parts,
    printed: () => printed,
    state: readJson<StackState>(join(home.folder, 'stack.json')),
    processes,
    end: (signal) => endChild(child, signal),
    async killEverything() {
      // the guard would end the groups more politely than a power cut
      const guard = readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8')
        .trim()
        .split(' ')
        .map(Number)
        .find((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('guard.sh'))
      for (const pid of [guard, child.pid]) if (pid) process.kill(pid, 'SIGKILL')
      for (const { pid, ticks } of processes) if (isSameProcess(pid, ticks)) process.kill(-pid, 'SIGKILL')
      await ended
    },
    pidOf(name) {
      const found = readJson<{ name: string; pid: number }[]>(join(home.folder, 'pids.json')).find((process) => process.name === name)
      if (!found) throw new Error(`${name} does not run`)
      return found.pid
    },
    alive: () => processes.filter(({ pid, ticks }) => isSameProcess(pid, ticks)).map(({ name }) => name),
  }
}
