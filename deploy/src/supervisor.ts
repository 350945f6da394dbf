/**
 * Starts programs, keeps their output in files, starts again what dies, and leaves nobody behind.
 * V1  Every child leads its own process group; only the supervisor hears Ctrl-C, and ends the groups newest first.
 * V2  A guard holds a pipe to us: when we die, however, it ends the groups (`guard.sh`).
 * V3  Pids with their start times are on disk: a new start ends what a crash left, and never a stranger with a reused pid.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, mkdirSync, openSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage, toError } from '@frameloop/kit/fault'
import { isSameProcess, startTicks } from '@frameloop/kit/process-identity'
import { backoffPause } from '@frameloop/kit/retry'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { type Home, readState, root, writeState } from './home.ts'

export interface Program {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  readonly uid?: number
  readonly gid?: number
  /** SIGTERM unless stated. */
  readonly stopSignal?: NodeJS.Signals
  /** A real operation that only works when the program does; throws where it can tell why it does not. */
  readonly ready: () => Promise<boolean>
  readonly readyWithin?: Ms
  /** Done each time it has become ready, until the signal: the program ended, or everything does. Failures are its own business. */
  readonly afterReady?: (signal: AbortSignal) => Promise<void>
}

interface Running {
  readonly program: Program
  child: ChildProcess
  restarts: number
  startedAt: EpochMs
  stopping: boolean
  /** It was ready once: then its end is news. */
  wasReady: boolean
  /** This process of it, not only an earlier one. */
  isReady: boolean
}

/** What a start leaves in `pids.json`: for the next start, and for `status`. */
export interface Remembered {
  readonly pid: number
  readonly ticks: string
  readonly name: string
  /** Its real operation has worked since this process of it began. */
  readonly isReady: boolean
}

export class Supervisor {
  readonly #home: Home
  readonly #running: Running[] = []
  readonly #guard: ChildProcess
  readonly #say: (text: string) => void
  #ending = false

  constructor(home: Home, say: (text: string) => void) {
    this.#home = home
    this.#say = say
    this.#guard = spawn('/bin/sh', [join(root, 'deploy/src/guard.sh')], { stdio: ['pipe', 'ignore', 'ignore'], detached: true })
    this.#guard.stdin?.on('error', () => {})
    this.#guard.unref()
  }

  /** Starts a program and waits until it can do its work. Throws `PART_NOT_READY`. */
  async start(program: Program): Promise<Ms> {
    if (this.#ending) throw new Fault('PART_NOT_READY', `${program.name} is not started any more: everything is being stopped`)
    const since = Date.now()
    const running: Running = { program, child: this.#spawn(program), restarts: 0, startedAt: since, stopping: false, wasReady: false, isReady: false }
    this.#running.push(running)
    this.#watch(running)
    this.#remember()
    const limit = program.readyWithin ?? 240_000
    let toldAfter = 30_000
    let why = 'no answer'
    const isReady = (): Promise<boolean> =>
      program.ready().catch((thrown: unknown) => {
        why = rootMessage(thrown)
        return false
      })
    while (!(await isReady())) {
      if (this.#ending) throw new Fault('PART_NOT_READY', `${program.name} was stopped before it was ready`)
      if (Date.now() - since > limit) throw new Fault('PART_NOT_READY', `${program.name} was not ready after ${limit / 1000} s (${why})`, { name: program.name })
      if (Date.now() - since > toldAfter) {
        this.#say(`  ${program.name.padEnd(10)} is not ready after ${toldAfter / 1000} s: ${why}`)
        toldAfter *= 2
      }
      if (running.restarts > 4) throw new Fault('PART_NOT_READY', `${program.name} ended ${running.restarts} times before it was ready`, { name: program.name })
      await sleep(60)
    }
    this.#becameReady(running)
    return Date.now() - since
  }

  #spawn(program: Program): ChildProcess {
    // somebody may have tidied up
    mkdirSync(this.#home.logs, { recursive: true })
    const log = openSync(this.#home.path('logs', `${program.name}.log`), 'a')
    const child = spawn(program.command, program.args, {
      stdio: ['ignore', log, log],
      detached: true,
      cwd: program.cwd ?? this.#home.folder,
      env: { ...baseEnvironment(), ...program.env },
      ...(program.uid === undefined ? {} : { uid: program.uid }),
      ...(program.gid === undefined ? {} : { gid: program.gid }),
    })
    closeSync(log)
    child.once('error', (error) => this.#say(`${program.name} could not be started: ${error.message}`))
    if (child.pid) this.#guard.stdin?.write(`+ ${child.pid}\n`)
    return child
  }

  #watch(running: Running): void {
    const { child, program } = running
    let isOver = false
    const ended = (code: number | null, signal: NodeJS.Signals | null): void => {
      if (isOver) return
      isOver = true
      if (child.pid) {
        this.#guard.stdin?.write(`- ${child.pid}\n`)
        // what it left in its group must not go on without it
        killGroup(child.pid, 'SIGKILL')
      }
      if (running.stopping || this.#ending) return
      if (Date.now() - running.startedAt > 60_000) running.restarts = 0
      running.restarts += 1
      const pause = backoffPause(running.restarts, { first: 200, cap: 5_000 }, Math.random())
      if (running.wasReady) this.#say(`${program.name} ended (${signal ?? `code ${code}`}), starting it again`)
      setTimeout(() => {
        if (running.stopping || this.#ending) return
        running.child = this.#spawn(program)
        running.startedAt = Date.now()
        running.isReady = false
        this.#watch(running)
        this.#remember()
        if (running.wasReady) this.#awaitReady(running)
      }, pause)
    }
    child.once('exit', ended)
    // what could not even be started says nothing but this
    child.once('error', () => ended(null, null))
  }

  #becameReady(running: Running): void {
    running.wasReady = true
    running.isReady = true
    this.#remember()
    const ended = new AbortController()
    running.child.once('exit', () => ended.abort())
    void running.program.afterReady?.(ended.signal)
  }

  #awaitReady(running: Running): void {
    const { child } = running
    const ask = async (): Promise<void> => {
      while (running.child === child && !this.#ending) {
        if (await running.program.ready().catch(() => false)) {
          this.#becameReady(running)
          this.#say(`${running.program.name} is back after ${((Date.now() - running.startedAt) / 1000).toFixed(1)} s`)
          return
        }
        await sleep(150)
      }
    }
    void ask()
  }

  #remember(): void {
    const pids: Remembered[] = this.#running.flatMap(({ program, child, isReady }) =>
      child.pid ? [{ pid: child.pid, ticks: startTicks(child.pid), name: program.name, isReady }] : [],
    )
    try {
      writeState(this.#home, 'pids.json', pids)
    } catch (thrown) {
      // on a full disk everything goes on; what is not remembered is not ended by the next start
      this.#say(`the processes could not be written down: ${toError(thrown).message}`)
    }
  }

  /** Ends everything, newest first; those without dependants together. */
  async stop(): Promise<void> {
    this.#ending = true
    const end = async (running: Running): Promise<void> => {
      running.stopping = true
      const { child, program } = running
      if (!child.pid || child.exitCode !== null || child.signalCode !== null) return
      const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
      killGroup(child.pid, program.stopSignal ?? 'SIGTERM')
      const forced = setTimeout(() => killGroup(child.pid ?? 0, 'SIGKILL'), 10_000)
      await ended
      clearTimeout(forced)
    }
    const isPart = ({ program }: Running): boolean => parts.has(program.name)
    await Promise.all(this.#running.filter((running) => !isPart(running)).map(end))
    await Promise.all(this.#running.filter((running) => isPart(running) && running.program.name !== 'postgres').map(end))
    await Promise.all(this.#running.filter((running) => running.program.name === 'postgres').map(end))
    this.#running.length = 0
    this.#remember()
    this.#guard.stdin?.end()
  }
}

/** Backing services, which the processes need until their end. */
const parts = new Set(['kafka', 'registry', 's3', 'postgres', 'mlflow'])

function killGroup(pid: number, signal: NodeJS.Signals): void {
  if (pid <= 1) return
  try {
    process.kill(-pid, signal)
  } catch {
    // the group is gone
  }
}

/** What children need of our environment; our own settings and secrets are handed on by name only. */
function baseEnvironment(): Record<string, string> {
  const kept: Record<string, string> = {}
  for (const name of ['PATH', 'HOME', 'USER', 'LANG', 'LC_ALL', 'TMPDIR', 'TZ', 'LD_LIBRARY_PATH']) {
    const value = process.env[name]
    if (value !== undefined) kept[name] = value
  }
  return kept
}

/** Ends what an earlier start left behind. Returns the names. */
export async function endLeftovers(home: Home): Promise<string[]> {
  const left = (readState<Remembered[]>(home, 'pids.json') ?? []).filter(({ pid, ticks }) => isSameProcess(pid, ticks) && ticks !== '')
  for (const { pid, name } of left) killGroup(pid, name === 'postgres' ? 'SIGINT' : 'SIGTERM')
  const deadline = Date.now() + 8_000
  while (left.some(({ pid, ticks }) => isSameProcess(pid, ticks)) && Date.now() < deadline) await sleep(50)
  for (const { pid, ticks } of left) if (isSameProcess(pid, ticks)) killGroup(pid, 'SIGKILL')
  return left.map(({ name }) => name)
}
