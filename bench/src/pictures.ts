/** Pictures to measure with: frames of the test footage, enlarged to 1920x1080, so real content with the size of today's cameras. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
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

/** The first `count` frames as they are (768x576), as `0.jpg`, `1.jpg`, … in a folder of their own inside `folder`; its path. */
export function footageFrames(folder: string, count: number): string {
  const own = join(folder, 'footage')
  mkdirSync(own)
  execFileSync('ffmpeg', ['-v', 'error', '-i', join(tools, 'footage/vtest.avi'), '-frames:v', String(count), '-q:v', '3', '-start_number', '0', join(own, '%d.jpg')])
  return own
}
