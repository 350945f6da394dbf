import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { CameraHealth } from './health.ts'
import { motionHeight, motionWidth } from './motion.ts'

const pixels = motionWidth * motionHeight
const footage = join(import.meta.dirname, '../../../.frameloop/tools/footage/vtest.avi')
const raw = execFileSync('ffmpeg', ['-v', 'error', '-i', footage, '-vf', `fps=1,scale=${motionWidth}:${motionHeight}:flags=area,format=gray`, '-f', 'rawvideo', '-'], {
  maxBuffer: 64_000_000,
})
const street = Array.from({ length: Math.floor(raw.length / pixels) }, (_, at) => new Uint8Array(raw.subarray(at * pixels, (at + 1) * pixels)))
const first = street[0] as Uint8Array
const each = (change: (value: number, at: number) => number): Uint8Array => first.map((value, at) => Math.max(0, Math.min(255, change(value, at))))

test('80 seconds of a busy street, one sample a second, are fine from first to last', () => {
  const health = new CameraHealth()
  for (const [at, gray] of street.entries()) expect(health.look(gray, at * 1_000), `second ${at}`).toEqual([])
})

test.each([
  ['dark', each((value) => value / 20)],
  ['blown out', each((value) => value + 200)],
  ['covered', each((value) => 90 + value / 60)],
] as const)('%s is said at once', (mark, gray) => {
  expect(new CameraHealth().look(gray, 0)).toEqual([mark])
})

test('blurred: the same street out of focus', () => {
  const blurred = execFileSync('ffmpeg', [
    '-v',
    'error',
    '-i',
    footage,
    '-frames:v',
    '1',
    '-vf',
    `gblur=sigma=40,scale=${motionWidth}:${motionHeight}:flags=area,format=gray`,
    '-f',
    'rawvideo',
    '-',
  ])
  expect(new CameraHealth().look(new Uint8Array(blurred), 0)).toEqual(['blurred'])
})

test('frozen: not one pixel changes for half a minute', () => {
  const health = new CameraHealth()
  expect([0, 10_000, 29_000, 30_000].map((at) => health.look(first, at))).toEqual([[], [], [], ['frozen']])
  expect(health.look(street[1] as Uint8Array, 31_000)).toEqual([])
})

test('moved: another view, for longer than somebody stands in front of it', () => {
  const health = new CameraHealth()
  for (const [at, gray] of street.entries()) health.look(gray, at * 10_000)
  // turned by a quarter of the picture
  const turned = (gray: Uint8Array): Uint8Array =>
    gray.map((_, at) => gray[((at + (motionWidth * motionHeight) / 4) % pixels) - (at % motionWidth) + ((at + 40) % motionWidth)] ?? 0)
  const marks = street.slice(0, 8).map((gray, at) => health.look(turned(gray), 1_000_000 + at * 10_000))
  expect(marks.slice(0, 5)).toEqual([[], [], [], [], []])
  expect(marks.at(-1)).toEqual(['moved'])
})
