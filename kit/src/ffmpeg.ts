/** ffmpeg as a child that never outlives the agent's wish: its pictures, its last words (without passwords), its end. */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { Fault } from './fault.ts'
import { redact } from './log.ts'
import { jpegsOf } from './mpjpeg.ts'
import type { Bytes, Ms } from './units.ts'

export interface Ffmpeg {
  readonly jpegs: AsyncIterable<Buffer>
  /** What it writes to `pipe:3` and on, as many as were asked for. */
  readonly sides: readonly Readable[]
  /** The last lines it wrote to stderr. */
  readonly said: () => string
  readonly stop: () => void
  readonly ended: Promise<number | null>
}

export interface FfmpegOptions {
  /** Address space it may take, where the system can limit it (not on macOS). */
  readonly memory?: Bytes
  /** CPU time it may take: a machine that is busy does not make a program slow. */
  readonly cpu?: Ms
  /** Each line it writes to stderr. */
  readonly onLine?: (line: string) => void
  /** How many more outputs it has: `pipe:3`, `pipe:4` … */
  readonly sideOutputs?: number
}

/** Linux ends a child with its parent, also when that is killed; elsewhere ffmpeg ends with the next picture it cannot hand over. */
const leash = ['/usr/bin/setpriv', '/bin/setpriv'].find((path) => existsSync(path))

/** The command under limits of memory and CPU time: a shell that sets them and becomes the program, so the pid stays the same. */
function limited(program: string, args: readonly string[], { memory, cpu }: Pick<FfmpegOptions, 'memory' | 'cpu'>): readonly [string, readonly string[]] {
  const limits = [...(memory === undefined ? [] : [`ulimit -v ${Math.ceil(memory / 1024)}`]), ...(cpu === undefined ? [] : [`ulimit -t ${Math.ceil(cpu / 1000)}`])]
  if (limits.length === 0) return [program, args]
  return ['/bin/sh', ['-c', `${limits.map((limit) => `${limit} 2>/dev/null; `).join('')}exec "$0" "$@"`, program, ...args]]
}

export function startFfmpeg(program: string, args: readonly string[], signal: AbortSignal, options: FfmpegOptions = {}): Ffmpeg {
  const [command, all] = limited(program, ['-hide_banner', '-nostdin', '-loglevel', 'warning', ...args], options)
  const [run, leashed] = leash ? [leash, ['--pdeathsig', 'KILL', command, ...all]] : [command, all]
  const child = spawn(run, leashed, { stdio: ['ignore', 'pipe', 'pipe', ...Array.from({ length: options.sideOutputs ?? 0 }, () => 'pipe' as const)] }) as ChildProcessByStdio<
    null,
    Readable,
    Readable
  >
  let lines = ''
  const { onLine } = options
  if (onLine) createInterface({ input: child.stderr }).on('line', onLine)
  child.stderr.on('data', (chunk: Buffer) => {
    lines = (lines + chunk.toString('utf8')).slice(-2_000)
  })
  const ended = new Promise<number | null>((resolve) => {
    child.once('error', (error) => {
      lines += `\n${error.message}`
      resolve(null)
    })
    child.once('close', resolve)
  })
  const stop = (): void => {
    child.kill('SIGKILL')
  }
  signal.addEventListener('abort', stop, { once: true })
  void ended.then(() => signal.removeEventListener('abort', stop))
  return { jpegs: jpegsOf(child.stdout), sides: (child.stdio as readonly unknown[]).slice(3) as Readable[], said: () => redact(lines.trim()), stop, ended }
}

/** Whether an end says that the shell could not run the program at all (POSIX, `sh`, exit status). */
export const isNotRun = (code: number): boolean => code === 126 || code === 127

/** Runs ffprobe to its end and gives what it printed; where that is more than `most`, it is ended, and `code` is null. Throws `TOOL_MISSING` when it cannot be run. */
export async function runFfprobe(
  program: string,
  args: readonly string[],
  signal: AbortSignal,
  options: Pick<FfmpegOptions, 'memory' | 'cpu'> & { readonly most: Bytes },
): Promise<{ readonly code: number | null; readonly out: string; readonly said: string; readonly isTooMuch: boolean }> {
  const [command, all] = limited(program, ['-v', 'error', ...args], options)
  const child = spawn(command, all, { stdio: ['ignore', 'pipe', 'pipe'], signal, killSignal: 'SIGKILL' })
  const out: Buffer[] = []
  let [length, said] = [0, '']
  let notRun: Error | undefined
  child.stdout.on('data', (chunk: Buffer) => {
    length += chunk.length
    if (length <= options.most) out.push(chunk)
    else child.kill('SIGKILL')
  })
  child.stderr.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString('utf8')).slice(-2_000)
  })
  const code = await new Promise<number | null>((resolve) => {
    child.once('error', (error) => {
      said += error.message
      if (!signal.aborted) notRun = error
      resolve(null)
    })
    child.once('close', resolve)
  })
  if (notRun || (code !== null && isNotRun(code))) throw new Fault('TOOL_MISSING', `${program} cannot be run: ${said.trim()}`, {}, notRun)
  return { code, out: Buffer.concat(out).toString('utf8'), said: redact(said.trim()), isTooMuch: length > options.most }
}
