/** `x.wat` → `x-kernel.ts`, WebAssembly as text that is loaded with the program: `npm run generate`. */
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import openAssembler from 'wabt'

/** The module that stands beside the file; it exports `xKernel`. */
export async function assemble(file: string): Promise<string> {
  const name = path.basename(file, '.wat')
  const assembler = await openAssembler()
  const module = assembler.parseWat(`${name}.wat`, readFileSync(file, 'utf8'), { simd: true })
  const bytes = Buffer.from(module.toBinary({}).buffer)
  module.destroy()
  return `/** Made from ${name}.wat by \`npm run generate\`. */\nexport const ${name}Kernel =\n  '${bytes.toString('base64')}'\n`
}

if (process.argv[1] === import.meta.filename) for (const file of process.argv.slice(2)) writeFileSync(file.replace('.wat', '-kernel.ts'), await assemble(file))
