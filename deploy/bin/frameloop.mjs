#!/usr/bin/env node
/** The `frameloop` command: builds what has changed (nothing, most of the time), then runs it. */
import { existsSync } from 'node:fs'

if (!existsSync(new URL('../../node_modules/esbuild/package.json', import.meta.url))) {
  // what is missing on this machine is asked for before anything is there
  if (process.argv[2] === 'doctor') {
    const { doctor } = await import('../setup/prerequisites.mjs')
    process.exit(doctor() ? 0 : 1)
  }
  process.stderr.write('frameloop is not set up yet. Run `npm start`, which sets up what is missing and starts it.\n')
  process.exit(1)
}
process.setSourceMapsEnabled(true)
// in a container image the build is there and the sources are not
if (existsSync(new URL('../src', import.meta.url))) await (await import('../setup/build.mjs')).buildMissing()
const { main } = await import('../../.frameloop/build/frameloop.mjs')
await main(process.argv)
