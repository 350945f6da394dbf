/**
 * `main()` of every process: settings, log, metrics, signals, lifetime, exit code. Only this file reads signals and
 * only this file sets the exit code: 0 stopped as asked, 1 failed while running, 2 could not start.
 */
import type { Static, TObject } from 'typebox'
import { readConfig } from './config.ts'
import { Fault, toError } from './fault.ts'
import { Lifetime, ProcessFailed } from './lifetime.ts'
import { type Log, openLog, redact } from './log.ts'
import { type Metrics, openMetrics } from './metrics.ts'

export interface ProcessContext<Config> {
  readonly name: string
  readonly config: Config
  readonly log: Log
  readonly metrics: Metrics
  readonly lifetime: Lifetime
  /** Ends the process with exit code 1: for loops that cannot go on. */
  readonly fail: (error: Error) => void
}

/** How long closing may take before the process is ended anyway. */
const closingLimit = 8_000

/** A process whose settings are environment variables. */
export function runProcess<Schema extends TObject>(name: string, settings: Schema, start: (context: ProcessContext<Static<Schema>>) => Promise<void>): Promise<void> {
  return runConfigured(name, () => readConfig(settings, process.env), start)
}

/** A process whose settings come from wherever `read` finds them. */
export async function runConfigured<Config extends object>(name: string, read: () => Config, start: (context: ProcessContext<Config>) => Promise<void>): Promise<void> {
  let config: Config
  try {
    config = read()
  } catch (thrown) {
    const error = toError(thrown)
    process.stderr.write(`${name}: ${error.message}\n${error instanceof Fault ? `${error.hint}\n` : ''}`)
    process.exitCode = 2
    return
  }
  const log = openLog(name, (config as { logLevel?: string }).logLevel ?? 'info')
  const lifetime = new Lifetime()
  let ending = false
  const end = (code: number): void => {
    if (ending) return
    ending = true
    process.exitCode = code
    const forced = setTimeout(() => {
      log.error({ closingLimit }, 'closing took too long, process ended anyway')
      process.exit(code || 1)
    }, closingLimit)
    forced.unref()
    void lifetime.close(code === 0 ? undefined : new ProcessFailed('the process has failed')).then((failures) => {
      for (const err of failures) log.error({ err }, 'closing failed')
      log.info({ code }, 'process stopped')
      process.exit(code)
    })
  }
  const fail = (error: Error): void => {
    if (!ending) log.error({ err: error }, 'process failed')
    end(1)
  }
  process.on('SIGINT', () => end(0))
  process.on('SIGTERM', () => end(0))
  process.on('uncaughtException', (error) => fail(error))
  process.on('unhandledRejection', (thrown) => fail(toError(thrown)))
  try {
    await start({ name, config, log, metrics: openMetrics(name), lifetime, fail })
    log.info({ pid: process.pid }, 'process started')
  } catch (thrown) {
    const error = toError(thrown)
    if (!ending) {
      log.error({ err: error }, 'process could not start')
      process.stderr.write(`${name}: ${redact(error.message)}\n${error instanceof Fault ? `${error.hint}\n` : ''}`)
    }
    end(2)
  }
}
