/** ffmpeg as a child that never outlives the agent's wish: its pictures, its last words (without passwords), its end. */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable } from 'node:stream'
import { redact } from './log.ts'
import { jpegsOf } from './mpjpeg.ts'

export interface Ffmpeg {
  readonly jpegs: AsyncIterable<Buffer>
  /** The last lines it wrote to stderr. */
  readonly said: () => string
  readonly stop: () => void
  readonly ended: Promise<number | null>
}

export function startFfmpeg(program: string, args: readonly string[], signal: AbortSignal): Ffmpeg {
  const child: ChildProcessByStdio<null, Readable, Readable> = spawn(program, ['-hide_banner', '-nostdin', '-loglevel', 'warning', ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  let lines = ''
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
  return { jpegs: jpegsOf(child.stdout), said: () => redact(lines.trim()), stop, ended }
}

/** Runs ffprobe to its end and gives what it printed. */
export async function runFfprobe(
  program: string,
  args: readonly string[],
  signal: AbortSignal,
): Promise<{ readonly code: number | null; readonly out: string; readonly said: string }> {
  const child = spawn(program, ['-v', 'error', ...args], { stdio: ['ignore', 'pipe', 'pipe'], signal })
  let out = ''
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString('utf8')
  })
  child.stderr.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString('utf8')).slice(-2_000)
  })
  const code = await new Promise<number | null>((resolve) => {
    child.once('error', (error) => {
      said += error.message
      resolve(null)
    })
    child.once('close', resolve)
  })
  return { code, out, said: redact(said.trim()) }
}
