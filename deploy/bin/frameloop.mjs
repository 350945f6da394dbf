#!/usr/bin/env node
/** The `frameloop` command: TypeScript sources run through tsx, so there is no build step between a change and a run. */
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const loader = new URL('../../node_modules/tsx/dist/esm/api/index.mjs', import.meta.url)
if (!existsSync(loader)) {
  process.stderr.write('frameloop is not set up yet. Run `npm start`, which sets up what is missing and starts it.\n')
  process.exit(1)
}
// Node 20 is supported here until it no longer is; the S3 client says so at every start otherwise
process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= 'true'
const { register } = await import(loader.href)
register()
const { main } = await import(new URL('../src/cli.ts', import.meta.url).href)
await main(process.argv, fileURLToPath(import.meta.url))
