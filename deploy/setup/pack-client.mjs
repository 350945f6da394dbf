/** Packs `@frameloop/client` as others install it: one file of JavaScript and its types. */
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { buildFolder, buildMissing } from './build.mjs'

const root = path.resolve(buildFolder, '../..')
const source = path.join(root, 'cloud/client')
const folder = path.join(buildFolder, 'client-package')
await buildMissing()
rmSync(folder, { recursive: true, force: true })
mkdirSync(folder, { recursive: true })
copyFileSync(path.join(buildFolder, 'client/client.js'), path.join(folder, 'index.js'))
for (const file of ['README.md', '../../LICENSE']) copyFileSync(path.join(source, file), path.join(folder, path.basename(file)))
execFileSync(path.join(root, 'node_modules/.bin/tsc'), ['-p', path.join(source, 'tsconfig.json'), '--outDir', path.join(folder, 'types')], { stdio: 'inherit' })
const { private: _, exports: __, ...about } = JSON.parse(readFileSync(path.join(source, 'package.json'), 'utf8'))
const exports = { '.': { types: './types/index.d.ts', default: './index.js' } }
writeFileSync(path.join(folder, 'package.json'), `${JSON.stringify({ ...about, exports, files: ['index.js', 'types', 'README.md', 'LICENSE'] }, null, 2)}\n`)
execFileSync('npm', ['pack', folder, '--pack-destination', root], { stdio: 'inherit' })
