/** `resize.wat` → `resize-kernel.ts`: `npm run generate`. */
import { readFileSync, writeFileSync } from 'node:fs'
import openAssembler from 'wabt'

export async function resizeKernel(): Promise<string> {
  const assembler = await openAssembler()
  const module = assembler.parseWat('resize.wat', readFileSync(new URL('./resize.wat', import.meta.url), 'utf8'), { simd: true })
  const bytes = Buffer.from(module.toBinary({}).buffer)
  module.destroy()
  return `/** Made from resize.wat by \`npm run generate\`. */\nexport const resizeKernel =\n  '${bytes.toString('base64')}'\n`
}

if (process.argv[1] === import.meta.filename) writeFileSync(new URL('./resize-kernel.ts', import.meta.url), await resizeKernel())
