/** Starts the real stack once for all end-to-end tests, as a person would: `frameloop up`, in a home of its own. */
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { root } from '../src/home.ts'
import { openOwnHome, startOwnStack } from './own-stack.ts'

declare module 'vitest' {
  interface ProvidedContext {
    home: string
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const home = openOwnHome()
  const footage = ['--footage', join(root, '.frameloop/tools/footage/vtest.avi'), '--zones', join(root, 'deploy/e2e/footage/vtest-zones.json')]
  const stack = await startOwnStack(home, ['--demo', ...footage, '--task', 'pedestrians'], { ARCHIVE_RECORDS: '100' })
  process.stdout.write(stack.printed().replace(/^(?!\[up\]).*\n/gm, ''))
  project.provide('home', home.folder)
  return async () => {
    await home[Symbol.asyncDispose]()
  }
}
