/** Pictures to measure with: frames of the test footage, enlarged to 1920x1080, so real content with the size of today's cameras. */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { tools } from '../../deploy/src/home.ts'

/** Every `every`-th frame, `count` of them, as JPEG files in `folder` (empty before); their names, in order, and bytes. */
export function enlargedFrames(folder: string, every: number, count: number): { readonly names: readonly string[]; readonly jpegs: readonly Buffer[] } {
  const filter = `select='not(mod(n,${every}))',scale=1920:1080:flags=lanczos`
  const input = ['-v', 'error', '-i', join(tools, 'footage/vtest.avi')]
  execFileSync('ffmpeg', [...input, '-vf', filter, '-fps_mode', 'passthrough', '-frames:v', String(count), '-q:v', '4', join(folder, '%02d.jpg')])
  const names = readdirSync(folder).sort()
  return { names, jpegs: names.map((name) => readFileSync(join(folder, name))) }
}
