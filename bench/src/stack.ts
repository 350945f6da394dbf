/** A stack of its own for a benchmark, started as a person starts it, in a folder that is thrown away afterwards. */
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isSameProcess, root } from '@frameloop/deploy/home'
import type { StackState } from '@frameloop/deploy/up'
import type { Ms } from '@frameloop/kit/units'

export interface BenchHome {
  readonly folder: string
  [Symbol.dispose](): void
}

export function openBenchHome(): BenchHome {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-bench-'))
  // PostgreSQL runs as another account when we are root
  chmodSync(folder, 0o755)
  return { folder, [Symbol.dispose]: () => rmSync(folder, { recursive: true, force: true }) }
}

export interface BenchStack {
  /** From the command to its line "ready". */
  readonly readyMs: Ms
  /** What each part and process took, as the command prints it. */
  readonly parts: Readonly<Record<string, Ms>>
  readonly state: StackState
  readonly processes: readonly { readonly name: string; readonly pid: number }[]
  /** SIGTERM, as Ctrl-C does. */
  stop(): Promise<void>
  /** SIGKILL to the supervisor, its guard and every process at once, as a power cut does. */
  killEverything(): Promise<void>
}

function readJson<Value>(file: string): Value {
  return JSON.parse(readFileSync(file, 'utf8')) as Value
}

const shown = / {2}(\w+) +ready after ([\d.]+) (ms|s)/g

export async function startStack(home: BenchHome, args: readonly string[]): Promise<BenchStack> {
  const since = performance.now()
  const child: ChildProcess = spawn(process.execPath, [join(root, 'deploy/bin/frameloop.mjs'), 'up', ...args], {
    env: { ...process.env, FRAMELOOP_HOME: home.folder },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let printed = ''
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  await new Promise<void>((resolve, reject) => {
    const read = (chunk: Buffer): void => {
      printed += chunk.toString('utf8')
      if (/ready after [^\n]*Stop with/.test(printed)) resolve()
    }
    child.stdout?.on('data', read)
    child.stderr?.on('data', read)
    child.once('exit', (code) => reject(new Error(`frameloop up ended with ${code}:\n${printed}`)))
  })
  const readyMs = performance.now() - since
  const parts: Record<string, Ms> = {}
  for (const [, name = '', number, unit] of printed.matchAll(shown)) parts[name] = Number(number) * (unit === 's' ? 1000 : 1)
  const processes = readJson<{ name: string; pid: number; ticks: string }[]>(join(home.folder, 'pids.json'))
  return {
    readyMs,
    parts,
    state: readJson<StackState>(join(home.folder, 'stack.json')),
    processes,
    async stop() {
      child.kill('SIGTERM')
      await ended
    },
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
  }
}

/** User and system time in ms of a program, its children and those it has waited for (proc(5), fields 4 and 14 to 17, in ticks of 10 ms). */
export function cpuMs(pid: number): number {
  let ticks = 0
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, 'utf8')
      const fields = stat
        .slice(stat.lastIndexOf(')') + 2)
        .split(' ')
        .map(Number)
      if (Number(entry) === pid || fields[1] === pid) for (const time of fields.slice(11, 15)) ticks += time
    } catch {
      // it ended while we looked
    }
  }
  return ticks * 10
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2
}
