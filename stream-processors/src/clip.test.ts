/** Real clips, made by the ffmpeg that reads them. */
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { chooseFrames, endsEarly, extractPictures, probeClip, sniffClip } from './clip.ts'
import { decodePicture } from './picture/decode-picture.ts'
import { sniffPicture } from './picture/picture-header.ts'

const tools = { ffmpeg: 'ffmpeg', ffprobe: 'ffprobe' }
const never = new AbortController().signal
let folder = ''
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'frameloop-clips-'))
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

/** Four seconds at 10 frames a second: two of one colour, two of another; each frame's brightness is of its own. */
function makeClip(name: string, ...args: readonly string[]): Buffer {
  const path = join(folder, name)
  const source = 'testsrc=size=320x240:rate=10:duration=2[a];smptebars=size=320x240:rate=10:duration=2[b];[a][b]concat'
  execFileSync('ffmpeg', ['-v', 'error', '-y', '-filter_complex', source, ...args, path])
  return readFileSync(path)
}

test.each([
  ['H.264 in MP4', 'a.mp4', ['-c:v', 'libx264', '-g', '10', '-bf', '2'], 'mp4', 'h264'],
  ['HEVC in MP4', 'b.mp4', ['-c:v', 'libx265', '-x265-params', 'log-level=none:keyint=10', '-tag:v', 'hvc1'], 'mp4', 'hevc'],
  ['H.264 in Matroska', 'c.mkv', ['-c:v', 'libx264', '-g', '10'], 'mkv', 'h264'],
  ['MJPEG in AVI', 'd.avi', ['-c:v', 'mjpeg'], 'avi', 'mjpeg'],
  ['MPEG-4 in AVI', 'e.avi', ['-c:v', 'mpeg4', '-g', '10'], 'avi', 'mpeg4'],
])('%s: frames come at the rate asked, each with its exact time', async (_, name, args, format, codec) => {
  const bytes = makeClip(name, ...args)
  expect(await probeClip(bytes, tools, never)).toMatchObject({ format, codec, width: 320, height: 240, isTruncated: false })
  const pictures = await extractPictures(bytes, { by: 'rate', perSecond: 2 }, 100, tools, never)
  expect(pictures.map(({ ptsUs }) => ptsUs)).toEqual([0, 500_000, 1_000_000, 1_500_000, 2_000_000, 2_500_000, 3_000_000, 3_500_000])
  const { fullWidth, fullHeight } = await decodePicture(pictures[3]?.jpeg ?? Buffer.alloc(0))
  expect({ fullWidth, fullHeight }).toEqual({ fullWidth: 320, fullHeight: 240 })
})

test('bare MJPEG is read at 25 frames a second', async () => {
  const bytes = makeClip('f.mjpeg', '-c:v', 'mjpeg', '-f', 'mjpeg')
  const pictures = await extractPictures(bytes, { by: 'rate', perSecond: 5 }, 100, tools, never)
  expect(pictures.map(({ ptsUs }) => ptsUs)).toEqual([0, 200_000, 400_000, 600_000, 800_000, 1_000_000, 1_200_000, 1_400_000])
})

test('key frames, and where the scene changes', async () => {
  const bytes = makeClip('g.mp4', '-c:v', 'libx264', '-x264-params', 'keyint=10:scenecut=0')
  const keys = await extractPictures(bytes, { by: 'key-frames' }, 100, tools, never)
  expect(keys.map(({ ptsUs }) => ptsUs)).toEqual([0, 1_000_000, 2_000_000, 3_000_000])
  const scenes = await extractPictures(bytes, { by: 'scene', change: 0.3 }, 100, tools, never)
  expect(scenes.map(({ ptsUs }) => ptsUs)).toEqual([0, 2_000_000])
  expect(await extractPictures(bytes, { by: 'rate', perSecond: 10 }, 3, tools, never)).toHaveLength(3)
})

test.each([
  ['Matroska', 'h.mkv', ['-c:v', 'libx264', '-g', '5']],
  ['MP4', 'i.mp4', ['-c:v', 'libx264', '-g', '5', '-movflags', '+faststart']],
  ['AVI', 'j.avi', ['-c:v', 'mpeg4', '-g', '5']],
])('a %s cut in half gives what it holds, and says so', async (_, name, args) => {
  const bytes = makeClip(name, ...args)
  const half = bytes.subarray(0, bytes.length * 0.6)
  expect(await probeClip(half, tools, never)).toMatchObject({ isTruncated: true })
  const pictures = await extractPictures(half, { by: 'rate', perSecond: 10 }, 100, tools, never)
  expect(pictures.length).toBeGreaterThan(3)
  expect(pictures.length).toBeLessThan(40)
  // in order, with the times of the frames that they are
  pictures.forEach(({ ptsUs }, at) => {
    expect(ptsUs).toBe(at * 100_000)
  })
})

test('an MP4 cut off before its index is refused', async () => {
  const bytes = makeClip('k.mp4', '-c:v', 'libx264')
  await expect(probeClip(bytes.subarray(0, bytes.length - 2_000), tools, never)).rejects.toMatchObject({ code: 'CLIP_UNREADABLE' })
})

test('a clip that claims to last a day is refused by its header', async () => {
  const bytes = Buffer.from(makeClip('l.mp4', '-c:v', 'libx264'))
  // movie, track and media headers: version 0, duration in their own time scales
  for (const [box, at] of [
    ['mvhd', 20],
    ['tkhd', 24],
    ['mdhd', 20],
  ] as const)
    bytes.writeUInt32BE(0xfffffff0, bytes.indexOf(box) + at)
  await expect(probeClip(bytes, tools, never)).rejects.toMatchObject({ code: 'CLIP_TOO_LARGE' })
})

test('a playlist, whatever it is called, never makes anybody fetch anything', async () => {
  let asked = 0
  const canary = createServer((_, response) => {
    asked += 1
    response.end('seen')
  })
  await new Promise<void>((resolve) => canary.listen(0, '127.0.0.1', resolve))
  const { port } = canary.address() as AddressInfo
  const secret = join(folder, 'secret')
  writeFileSync(secret, 'top secret')
  const playlist = `#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\nconcat:http://127.0.0.1:${port}/x|file://${secret}\n#EXT-X-ENDLIST\n`
  const ftyp = Buffer.from([0, 0, 0, 16, ...Buffer.from('ftypisom'), 0, 0, 0, 0])
  const gab2 = Buffer.concat([Buffer.from('RIFF\xff\xff\xff\x00AVI LIST\x10\x00\x00\x00movi00tx', 'latin1'), Buffer.from('GAB2\x00\x02\x00'), Buffer.from(playlist)])
  try {
    for (const bytes of [Buffer.from(playlist), Buffer.concat([ftyp, Buffer.from(playlist)]), gab2]) {
      const thrown = await extractPictures(bytes, { by: 'rate', perSecond: 1 }, 10, tools, never).catch((error: Error) => error)
      expect(thrown).toMatchObject({ code: 'CLIP_UNREADABLE' })
      expect(String(thrown)).not.toContain('top secret')
    }
    expect(asked).toBe(0)
    // the canary itself works
    await fetch(`http://127.0.0.1:${port}/`)
    expect(asked).toBe(1)
  } finally {
    canary.close()
  }
})

test('a file that is several things at once is what it begins as, and nothing else', async () => {
  const clip = makeClip('polyglot.mp4', '-c:v', 'libx264')
  const picture = await sharp({ create: { width: 64, height: 48, channels: 3, background: 'teal' } })
    .jpeg()
    .toBuffer()
  // boxes of MP4 may hold anything, and a JPEG may be followed by anything
  const hidden = Buffer.concat([Buffer.alloc(8), picture])
  hidden.writeUInt32BE(hidden.length)
  hidden.write('free', 4)
  const begun = clip.readUInt32BE(0)
  const pictureInClip = Buffer.concat([clip.subarray(0, begun), hidden, clip.subarray(begun)])
  const clipInPicture = Buffer.concat([picture, clip])
  expect([sniffPicture(pictureInClip), sniffClip(pictureInClip)]).toEqual([undefined, 'mp4'])
  expect([sniffPicture(clipInPicture), sniffClip(clipInPicture)]).toEqual(['jpeg', 'mjpeg'])
  expect(await decodePicture(clipInPicture)).toMatchObject({ width: 64, height: 48 })
  expect((await extractPictures(clipInPicture, { by: 'rate', perSecond: 10 }, 100, tools, never)).length).toBeLessThanOrEqual(1)

  // the first bytes of a JPEG, as the length of the first box of an MP4
  const both = Buffer.from(clip)
  picture.copy(both, 0, 0, 4)
  await expect(decodePicture(both)).rejects.toMatchObject({ code: 'PICTURE_UNREADABLE' })
  await expect(probeClip(both, tools, never)).rejects.toMatchObject({ code: 'CLIP_UNREADABLE' })
})

test('a clip is early over when half a second or more is missing', () => {
  const frames = Array.from({ length: 20 }, (_, at) => ({ pts: at, ptsUs: at * 100_000, isKey: at === 0 }))
  expect(endsEarly(frames, 2_000_000)).toBe(false)
  expect(endsEarly(frames, 2_400_000)).toBe(false)
  expect(endsEarly(frames, 2_600_000)).toBe(true)
  expect(endsEarly(frames, 0)).toBe(false)
})

test('at a rate above its own every frame of a clip is taken', () => {
  expect(chooseFrames([0, 100_000, 200_000], 50)).toEqual([0, 1, 2])
  expect(chooseFrames([0, 40_000, 80_000, 120_000, 160_000, 200_000], 10)).toEqual([0, 3, 5])
})

test('what was cut off at the beginning without encoding again is not seen, and times begin with what is', async () => {
  makeClip('long.mp4', '-c:v', 'libx264', '-g', '20', '-bf', '0')
  const path = join(folder, 'cut.mp4')
  execFileSync('ffmpeg', ['-v', 'error', '-y', '-ss', '1.2', '-i', join(folder, 'long.mp4'), '-c', 'copy', path])
  const bytes = readFileSync(path)
  const clip = await probeClip(bytes, tools, never)
  expect(clip.isTruncated).toBe(false)
  expect(clip.frames.length).toBe(28)
  const pictures = await extractPictures(bytes, { by: 'rate', perSecond: 10 }, 100, tools, never)
  expect(pictures.map(({ ptsUs }) => ptsUs)).toEqual(clip.frames.map(({ ptsUs }) => ptsUs))
  expect(pictures[0]?.ptsUs).toBe(0)
  expect(await extractPictures(bytes, { by: 'scene', change: 0.3 }, 100, tools, never)).toHaveLength(2)
})

test('pictures that AVI keeps in the order they are decoded have the times they are shown at', async () => {
  const bytes = makeClip('b.avi', '-c:v', 'libx264', '-g', '10', '-bf', '2')
  const plain = makeClip('plain.mp4', '-c:v', 'libx264', '-g', '10', '-bf', '0')
  const [shown, wanted] = [
    await extractPictures(bytes, { by: 'rate', perSecond: 10 }, 100, tools, never),
    await extractPictures(plain, { by: 'rate', perSecond: 10 }, 100, tools, never),
  ]
  expect(shown.map(({ ptsUs }) => ptsUs)).toEqual(wanted.map(({ ptsUs }) => ptsUs))
  const brightness = async (jpeg: Buffer): Promise<number> => {
    const { rgb } = await decodePicture(jpeg)
    return rgb.reduce((sum, value) => sum + value, 0) / rgb.length
  }
  // the second half is another picture altogether: from the very same moment on
  const halves = async (pictures: typeof shown) => Promise.all(pictures.map(async ({ jpeg, ptsUs }) => [ptsUs, Math.round((await brightness(jpeg)) / 8)] as const))
  const jumps = (list: readonly (readonly [number, number])[]): number[] => list.flatMap(([at, value], n) => (n > 0 && Math.abs(value - (list[n - 1]?.[1] ?? 0)) >= 2 ? [at] : []))
  expect(jumps(await halves(shown))).toEqual(jumps(await halves(wanted)))
  expect((await extractPictures(bytes, { by: 'scene', change: 0.3 }, 100, tools, never)).map(({ ptsUs }) => ptsUs)).toEqual([0, 2_000_000])
  expect((await extractPictures(bytes, { by: 'key-frames' }, 100, tools, never)).map(({ ptsUs }) => ptsUs)).toEqual([0, 1_000_000, 2_000_000, 3_000_000])
})

test('a piece of a recording whose clock ran on is as long as what it holds', async () => {
  const path = join(folder, 'late.mkv')
  execFileSync('ffmpeg', ['-v', 'error', '-y', '-f', 'lavfi', '-i', 'testsrc=size=64x48:rate=10:duration=2', '-c:v', 'libx264', '-output_ts_offset', '7202', path])
  const clip = await probeClip(readFileSync(path), tools, never)
  expect(clip).toMatchObject({ isTruncated: false })
  expect(clip.durationUs).toBeLessThan(3_000_000)
})

test('a frame of an AVI that cannot be decoded moves no other one', async () => {
  const bytes = Buffer.from(makeClip('damaged.avi', '-c:v', 'mjpeg'))
  // the data of the sixth frame, behind the names of its chunk and its length
  let at = bytes.indexOf('movi')
  for (let frame = 0; frame <= 5; frame += 1) at = bytes.indexOf('00dc', at + 4)
  bytes.fill(0, at + 8, at + 8 + bytes.readUInt32LE(at + 4))
  const pictures = await extractPictures(bytes, { by: 'rate', perSecond: 10 }, 100, tools, never)
  const all = Array.from({ length: 40 }, (_, n) => n * 100_000)
  expect(pictures.map(({ ptsUs }) => ptsUs)).toEqual(all.filter((time) => time !== 500_000))
})
