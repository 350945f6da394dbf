import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { randomOf } from '@frameloop/kit/random'
import { afterAll, expect, test } from 'vitest'
import { clipFile } from './clip-file.ts'
import { ClipRing } from './clip-ring.ts'

const folder = mkdtempSync(join(tmpdir(), 'frameloop-clips-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

// 30 s, a picture a decoder can begin with every second; the picture's brightness tells its second
const stream = execFileSync(
  'ffmpeg',
  [
    ...['-v', 'error', '-f', 'lavfi', '-i', "color=black:size=64x48:rate=10:duration=30,geq=lum='8*floor(T)':cb=128:cr=128"],
    ...['-c:v', 'libx264', '-preset', 'ultrafast', '-qp', '4', '-g', '10', '-bf', '0', '-f', 'mpegts', '-'],
  ],
  { maxBuffer: 64_000_000 },
)
const settings = { before: 5, after: 3, longest: 20, onMotion: true }

/** The stream as it comes, in pieces of any size, 30 s long; `at`: what happens when the clock passes. */
function feed(ring: ClipRing, at: (now: number) => void): void {
  const random = randomOf(3)
  let sent = 0
  while (sent < stream.length) {
    const size = 1 + Math.floor(random() * 700)
    const now = (sent / stream.length) * 30_000
    ring.push(stream.subarray(sent, sent + size), now)
    sent += size
    at(now)
  }
}

/** Of each picture of a file: the second it was taken in. */
function secondsIn(file: Buffer): number[] {
  const path = join(folder, 'found.mp4')
  writeFileSync(path, file)
  const gray = execFileSync('ffmpeg', ['-v', 'error', '-i', path, '-vf', 'scale=1:1:flags=area,format=gray', '-f', 'rawvideo', '-'])
  // full range from the studio range that was written
  return [...gray].map((value) => Math.round(((value / 255) * 219 + 16) / 8))
}

const tools = { folder, ffmpeg: 'ffmpeg' }
const file = async (clip: ReturnType<ClipRing['take']>): Promise<Buffer> => {
  const bytes = clip && (await clipFile(clip, 'door', tools, new AbortController().signal))
  if (!bytes) throw new Error('there is no clip')
  return bytes
}

test('a clip begins the seconds before its event, with a picture that needs none before it, and ends after it', async () => {
  const ring = new ClipRing(settings)
  let clip: ReturnType<ClipRing['take']>
  let [most, takenAt] = [0, 0]
  feed(ring, (now) => {
    if (now >= 15_000 && now < 16_000) ring.event(now)
    if (!ring.isRecording) most = Math.max(most, ring.bytes)
    if (clip) return
    clip = ring.take(now)
    takenAt = now
  })
  const seconds = secondsIn(await file(clip))
  expect(seconds[0]).toBeGreaterThanOrEqual(8)
  expect(seconds[0]).toBeLessThanOrEqual(10)
  expect(seconds.at(-1)).toBeGreaterThanOrEqual(18)
  expect(seconds.at(-1)).toBeLessThanOrEqual(20)
  expect(seconds).toEqual([...seconds].sort((a, b) => a - b))
  expect((takenAt - (clip?.age ?? 0)) / 1000).toBeCloseTo(seconds[0] ?? 0, -0.7)
  // what lies there between events is what a clip would begin with, and one group more
  expect(most).toBeLessThan((stream.length / 30) * 8)
  expect(readdirSync(folder)).toEqual(['found.mp4'])
})

test('motion without end makes clips of the longest size, one after the other, and nothing between them is missing', async () => {
  const ring = new ClipRing({ ...settings, longest: 8 })
  const clips: ReturnType<ClipRing['take']>[] = []
  feed(ring, (now) => {
    const done = ring.take(now)
    if (done) clips.push(done)
    if (now >= 6_000) ring.event(now)
  })
  const seconds: number[][] = []
  for (const clip of clips) seconds.push(secondsIn(await file(clip)))
  expect(clips.length).toBeGreaterThanOrEqual(3)
  for (const [at, list] of seconds.entries()) if (at > 0) expect((list[0] ?? 0) - (seconds[at - 1]?.at(-1) ?? 0)).toBeLessThanOrEqual(1)
})

test('a camera that sends one picture to begin with and then none does not fill the memory', () => {
  const ring = new ClipRing(settings)
  // the first group of the stream, and then what needs it, again and again
  const [first, rest] = [stream.subarray(0, 188 * 20), stream.subarray(188 * 4, 188 * 8)]
  ring.push(first, 0)
  let most = 0
  for (let second = 1; second < 600; second += 1) {
    for (let n = 0; n < 20; n += 1) ring.push(rest, second * 1000)
    most = Math.max(most, ring.bytes)
  }
  expect(most).toBeLessThan(rest.length * 20 * 27 + first.length)
  expect(ring.event(600_000)).toBeUndefined()
})

test('a stream that breaks off gives what it had, and one that is none gives nothing', async () => {
  const ring = new ClipRing(settings)
  ring.push(stream.subarray(0, stream.length / 2), 1_000)
  expect(ring.event(1_000)).toBeGreaterThan(1_000)
  expect(ring.take(1_500)).toBeUndefined()
  expect(secondsIn(await file(ring.take(1_500, true))).length).toBeGreaterThan(100)
  ring.clear()
  ring.push(Buffer.from('<html>'.repeat(100)), 2_000)
  expect(ring.event(2_000)).toBeUndefined()
  expect(await clipFile({ age: 0, transportStream: Buffer.from('rubbish') }, 'door', tools, new AbortController().signal)).toBeUndefined()
})

test('a camera with few pictures to begin with gives one clip after the other, not one for each picture that moves', () => {
  const ring = new ClipRing({ ...settings, longest: 8 })
  // one group, long before anything happens
  ring.push(stream.subarray(0, 188 * 20), 0)
  let clips = 0
  for (let now = 10_000; now <= 30_000; now += 100) {
    ring.push(stream.subarray(188 * 4, 188 * 8), now)
    const clip = ring.take(now)
    if (clip) clips += 1
    if (clip) expect(clip.transportStream.length).toBeGreaterThan(0)
    ring.event(now)
  }
  expect(clips).toBeGreaterThanOrEqual(2)
  expect(clips).toBeLessThanOrEqual(7)
})
