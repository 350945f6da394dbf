/** Starts the real stack once for all end-to-end tests, as a person would: `frameloop up`, in a home of its own. */
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { root } from '../src/home.ts'

declare module 'vitest' {
  interface ProvidedContext {
    home: string
  }
}

const command = join(root, 'deploy/bin/frameloop.mjs')

/** Resolves with everything printed once `until` has been printed. */
function started(child: ChildProcess, until: RegExp): Promise<string> {
  return new Promise((resolve, reject) => {
    let printed = ''
    const read = (chunk: Buffer): void => {
      printed += chunk.toString('utf8')
      if (until.test(printed)) resolve(printed)
    }
    child.stdout?.on('data', read)
    child.stderr?.on('data', read)
    child.once('exit', (code) => reject(new Error(`frameloop up ended with ${code}:\n${printed}`)))
  })
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const home = mkdtempSync(join(tmpdir(), 'frameloop-e2e-'))
  chmodSync(home, 0o755)
  const child = spawn(
    process.execPath,
    [command, 'up', '--demo', '--footage', join(root, '.frameloop/tools/footage/vtest.avi'), '--zones', join(root, 'deploy/e2e/footage/vtest-zones.json'), '--task', 'pedestrians'],
    { env: { ...process.env, FRAMELOOP_HOME: home }, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  const printed = await started(child, /ready after [^\n]*Stop with/)
  process.stdout.write(printed.replace(/^(?!\[up\]).*\n/gm, ''))
  project.provide('home', home)
  return async () => {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.removeAllListeners('exit')
    child.once('exit', () => {})
    child.kill('SIGTERM')
    await Promise.race([ended, new Promise((resolve) => child.once('exit', resolve))])
    rmSync(home, { recursive: true, force: true })
  }
}
