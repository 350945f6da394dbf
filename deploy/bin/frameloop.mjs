#!/usr/bin/env node
/** The `frameloop` command: builds what has changed (nothing, most of the time), then runs it. */
import { existsSync } from 'node:fs'

if (!existsSync(new URL('../../node_modules/esbuild/package.json', import.meta.url))) {
  process.stderr.write('frameloop is not set up yet. Run `npm start`, which sets up what is missing and starts it.\n')
  process.exit(1)
}
process.setSourceMapsEnabled(true)
const { buildFolder, buildMissing } = await import('../setup/build.mjs')
await buildMissing()
const { main } = await import(`${buildFolder}/frameloop.mjs`)
await main(process.argv)
