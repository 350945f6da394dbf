/** Rivals in Python: their environment, made when it is missing from versions pinned by hash, and a program that answers line by line. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { tools } from '../../deploy/src/home.ts'

const folder = fileURLToPath(new URL('../rivals', import.meta.url))

/** Files of what is to be installed, and how much that is. */
const kinds = { '': '90 MB', '-predict': '400 MB' } as const

/** The Python that has the rivals' libraries: those of the chain, or of inference. */
export function rivalPython(say: (text: string) => void, kind: keyof typeof kinds = ''): string {
  const environment = join(tools, `rivals${kind}`)
  const file = join(folder, `requirements${kind}.txt`)
  const requirements = readFileSync(file, 'utf8')
  const stamp = join(environment, 'requirements.txt')
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== requirements) {
    say(`fetching the rivals (Python packages, ${kinds[kind]}) …`)
    execFileSync('python3', ['-m', 'venv', environment])
    execFileSync(join(environment, 'bin/python'), ['-m', 'pip', 'install', '-q', '--no-deps', '--require-hashes', '--only-binary=:all:', '-r', file])
    writeFileSync(stamp, requirements)
  }
  return join(environment, 'bin/python')
}

export interface Rival {
  /** The next JSON line that it prints. */
  next<Answer>(): Promise<Answer>
  /** Writes a line and gives the JSON line that answers it. */
  ask<Answer>(line: string): Promise<Answer>
  readonly process: ChildProcess
  end(): Promise<void>
}

export function startRival(python: string, script: string, args: readonly string[], env: Readonly<Record<string, string>> = {}): Rival {
  const child = spawn(python, [join(folder, script), ...args], { stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, ...env } })
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  const next = async <Answer>(): Promise<Answer> => {
    const { value, done } = await lines.next()
    if (done) throw new Error(`${script} ended`)
    return JSON.parse(String(value)) as Answer
  }
  return {
    next,
    ask(line) {
      child.stdin.write(`${line}\n`)
      return next()
    },
    process: child,
    async end() {
      child.stdin.end()
      await ended
    },
  }
}
