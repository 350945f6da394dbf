import { createHash } from 'node:crypto'
import { createServer, type RequestListener, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256Hex } from '@frameloop/kit/digest'
import { openLog } from '@frameloop/kit/log'
import sharp from 'sharp'
import { afterEach, expect, test } from 'vitest'
import { afterFailure, Pace, Stalled, watched } from './camera-state.ts'
import { failureOf, finishingFilters } from './ffmpeg-stream.ts'
import { isDue } from './file.ts'
import { finishPicture, grayOf } from './finish.ts'
import { httpSource } from './http.ts'
import { answerChallenge, readChallenge } from './http-login.ts'
import { MotionGate, motionHeight, motionWidth } from './motion.ts'
import { type Captured, decoded, patienceOf, SourceFailure } from './source.ts'

const context = { log: openLog('test', 'silent'), ffmpeg: 'ffmpeg', ffprobe: 'ffprobe', wantsGray: false, say: () => {} }
const jpegOf = (value: number, width = 64, height = 48): Promise<Buffer> =>
  sharp({ create: { width, height, channels: 3, background: { r: value, g: value, b: value } } })
    .jpeg()
    .toBuffer()

let server: Server | undefined
afterEach(() => {
  server?.closeAllConnections()
  server?.close()
})
async function serve(listener: RequestListener): Promise<string> {
  server = createServer(listener)
  await new Promise<void>((resolve) => server?.listen(0, '127.0.0.1', resolve))
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}
async function first(address: string, count: number, more: object = {}): Promise<Captured[]> {
  const taken: Captured[] = []
  const signal = AbortSignal.timeout(10_000)
  for await (const picture of httpSource({ id: 'c', address, framesPerSecond: 1e6, ...more }).pictures(context, signal)) {
    taken.push(picture)
    if (taken.length === count) break
  }
  return taken
}

test.each([true, false])('MJPEG is cut into the very pictures that were sent (lengths stated: %s), however the bytes arrive', async (stated) => {
  const pictures = await Promise.all([10, 60, 110].map((value) => jpegOf(value)))
  const address = await serve(async (_, response) => {
    response.writeHead(200, { 'content-type': 'multipart/x-mixed-replace; boundary="--frame"' })
    for (const picture of pictures) {
      await sleep(25)
      const part = Buffer.concat([Buffer.from(`--frame\r\nContent-Type: image/jpeg\r\n${stated ? `Content-Length: ${picture.length}\r\n` : ''}\r\n`), picture, Buffer.from('\r\n')])
      for (let at = 0; at < part.length; at += 97) response.write(part.subarray(at, at + 97))
    }
    response.end('--frame--\r\n\r\n')
  })
  const taken = await first(`${address}/stream`, 3)
  expect(taken.map(({ bytes }) => sha256Hex(bytes))).toEqual(pictures.map((picture) => sha256Hex(picture)))
  expect(taken[0]).toMatchObject({ width: 64, height: 48, kind: 'image' })
})

test('a snapshot address is asked again and again, and answers a digest challenge', async () => {
  const picture = await jpegOf(50)
  const md5 = (text: string): string => createHash('md5').update(text).digest('hex')
  let asked = 0
  const address = await serve((request, response) => {
    const { response: given, cnonce, username } = readChallenge(request.headers.authorization ?? '')
    const wanted = md5(`${md5('viewer:cam:open sesame')}:n1:00000001:${cnonce}:auth:${md5('GET:/snap?x=1')}`)
    if (username !== 'viewer' || given !== wanted) response.writeHead(401, { 'www-authenticate': 'Digest realm="cam", nonce="n1", qop="auth", algorithm=MD5' }).end()
    else {
      asked += 1
      response.writeHead(200, { 'content-type': 'image/jpeg' }).end(picture)
    }
  })
  expect(await first(`${address}/snap?x=1`, 3, { username: 'viewer', password: 'open sesame' })).toHaveLength(3)
  expect(asked).toBe(3)
  await expect(first(`${address}/snap?x=1`, 1, { username: 'viewer', password: 'wrong' })).rejects.toMatchObject({ state: 'refused' })
})

test('RFC 7616, 3.9.1: the answer to its example challenge', () => {
  const header =
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
  const answer = answerChallenge(header, 'GET', '/dir/index.html', { username: 'Mufasa', password: 'Circle of Life' }, 'f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ')
  expect(answer).toContain('response="753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"')
})

test.each([
  [404, 'text/plain', 'refused'],
  [403, 'text/plain', 'refused'],
  [500, 'text/plain', 'backing off'],
  [200, 'text/html', 'wrong'],
  [200, 'image/jpeg', 'wrong'],
])('a camera that answers %i with %s is %s', async (status, type, state) => {
  const address = await serve((_, response) => response.writeHead(status, { 'content-type': type }).end('no picture'))
  await expect(first(address, 1)).rejects.toMatchObject({ state })
})

test('silence is a stall, although the connection is up, and whoever hangs is let go', async () => {
  const address = await serve((_, response) => {
    response.writeHead(200, { 'content-type': 'multipart/x-mixed-replace; boundary=frame' })
    response.write('--frame\r\n')
  })
  const connection = new AbortController()
  const pictures = httpSource({ id: 'c', address }).pictures(context, connection.signal)
  await expect(watched(pictures, { first: 100, next: 100 }, () => connection.abort()).next()).rejects.toBeInstanceOf(Stalled)
  expect(connection.signal.aborted).toBe(true)
})

test('who refuses or sends rubbish is asked every half minute only, who is away ever more seldom', () => {
  expect(afterFailure(new SourceFailure('refused', 'no'), 1, 0)).toMatchObject({ state: 'refused', pause: 30_000 })
  expect(afterFailure(new SourceFailure('wrong', 'no'), 9, 0)).toMatchObject({ state: 'wrong', pause: 30_000 })
  expect(afterFailure(new Stalled('silent'), 1, 1)).toMatchObject({ state: 'stalled', pause: 250 })
  expect(afterFailure(new SourceFailure('backing off', 'away'), 20, 1)).toMatchObject({ state: 'backing off', pause: 15_000 })
})

const still = new Uint8Array(motionWidth * motionHeight).fill(100)
/** A bright square at shares of the picture. */
function withSquare(x: number, y: number, size = 12): Uint8Array {
  const picture = still.slice()
  for (let row = 0; row < size; row += 1)
    picture.fill(
      220,
      (Math.floor(y * motionHeight) + row) * motionWidth + Math.floor(x * motionWidth),
      (Math.floor(y * motionHeight) + row) * motionWidth + Math.floor(x * motionWidth) + size,
    )
  return picture
}
const usual = { threshold: 0.004, hold: 2, heartbeat: 60, areas: [], ignore: [] }

test('the gate opens with motion, holds for a while, and lets a heartbeat through when nothing moves', () => {
  const gate = new MotionGate(usual, 5)
  expect(gate.judge(still, 0).why).toBe('heartbeat')
  expect(gate.judge(still, 1_000)).toMatchObject({ keep: false, changed: 0, why: 'still' })
  expect(gate.judge(withSquare(0.5, 0.5), 2_000)).toMatchObject({ keep: true, why: 'motion' })
  expect(gate.judge(still, 4_000).why).toBe('motion')
  expect(gate.judge(still, 4_100).why).toBe('still')
  expect(gate.judge(still, 64_000).why).toBe('heartbeat')
})

test('when motion begins pictures are kept at the rate of the burst, and later at the usual one', () => {
  const gate = new MotionGate({ ...usual, burst: { framesPerSecond: 20, seconds: 1 } }, 5)
  gate.judge(still, 0)
  const kept = (from: number, to: number): number => {
    let count = 0
    for (let at = from; at < to; at += 50) if (gate.judge(withSquare(0.1 + ((at / 50) % 8) / 10, 0.5), at).keep) count += 1
    return count
  }
  expect(kept(1_000, 2_000)).toBe(20)
  expect(kept(2_000, 4_000)).toBe(10)
})

test('motion counts where it is asked for, and not where it is ignored; what stays becomes background', () => {
  const areas = new MotionGate({ ...usual, areas: [[0, 0, 0.4, 1]] }, 5)
  const ignores = new MotionGate({ ...usual, ignore: [[0.45, 0.45, 0.3, 0.3]] }, 5)
  for (const gate of [areas, ignores]) gate.judge(still, 0)
  expect([areas.judge(withSquare(0.5, 0.5), 1_000).why, areas.judge(withSquare(0.1, 0.1), 2_000).why]).toEqual(['still', 'motion'])
  expect([ignores.judge(withSquare(0.5, 0.5), 1_000).why, ignores.judge(withSquare(0.1, 0.1), 2_000).why]).toEqual(['still', 'motion'])
  const gate = new MotionGate({ ...usual, heartbeat: 0 }, 5)
  gate.judge(still, 0)
  // a van that parked
  const kept = Array.from({ length: 200 }, (_, at) => gate.judge(withSquare(0.5, 0.5), 1_000 + at * 200).keep)
  expect(kept[0]).toBe(true)
  expect(kept.at(-1)).toBe(false)
})

test('masks are black and sizes right before anything is written, and the gate sees what is left', async () => {
  const bytes = await jpegOf(200, 640, 480)
  const picture: Captured = { bytes, extension: 'jpg', kind: 'image', capturedAt: 0, width: 640, height: 480, sourceName: '', newPass: false }
  const finished = await finishPicture(picture, { id: 'c', address: '', masks: [[0.5, 0, 0.5, 1]], width: 320 })
  expect(finished).toMatchObject({ width: 320, height: 240 })
  const gray = await grayOf(finished.bytes)
  expect(gray).toHaveLength(motionWidth * motionHeight)
  expect([gray[45 * motionWidth + 20], gray[45 * motionWidth + 140]].map((value) => (value ?? 0) > 150)).toEqual([true, false])
  expect(gray[45 * motionWidth + 140]).toBeLessThan(10)
  expect(await finishPicture(picture, { id: 'c', address: '' })).toBe(picture)
})

test('a PNG whose size nobody said and a JPEG that lies on its side are masked where people see it, and what cannot be decoded does not get through', async () => {
  const plain: Captured = { bytes: Buffer.from('no picture'), extension: 'png', kind: 'image', capturedAt: 0, width: 0, height: 0, sourceName: '', newPass: false }
  const upperHalf = { id: 'c', address: '', masks: [[0, 0, 1, 0.5]] as [number, number, number, number][] }
  const white = sharp({ create: { width: 60, height: 40, channels: 3, background: 'white' } })
  // orientation 6: shown turned by 90 degrees, 40 wide and 60 high
  for (const [bytes, width, height] of [
    [await white.clone().png().toBuffer(), 60, 40],
    [await white.clone().withMetadata({ orientation: 6 }).jpeg().toBuffer(), 40, 60],
  ] as const) {
    const finished = await finishPicture({ ...plain, bytes }, upperHalf)
    expect(finished).toMatchObject({ extension: 'jpg', width, height })
    const { data } = await sharp(finished.bytes).greyscale().raw().toBuffer({ resolveWithObject: true })
    expect([Math.max(...data.subarray(0, width * (height / 2 - 8))) < 10, Math.min(...data.subarray(width * (height / 2 + 8))) > 245]).toEqual([true, true])
  }
  await expect(finishPicture(plain, upperHalf)).rejects.toThrow()
})

test('whoever asks for a picture a minute waits for it without calling the camera dead, and a percent sign is one', () => {
  const often = patienceOf({ id: 'c', address: '', framesPerSecond: 5 })
  const seldom = patienceOf({ id: 'c', address: '', framesPerSecond: 1 / 60 })
  expect([often.next, seldom.next, seldom.first > 60_000]).toEqual([5_000, 180_000, true])
  expect([decoded('a%20b'), decoded('50%off')]).toEqual(['a b', '50%off'])
})

test('of a video file as many frames a second are kept as it is set to, the same ones in each pass, or all', () => {
  const offsets = Array.from({ length: 30 }, (_, at) => Math.round((at * 1e6) / 7))
  const kept = (rate: number | undefined): number[] => offsets.flatMap((offset, at) => (isDue(offset, offsets[at - 1], rate) ? [at] : []))
  expect(kept(undefined)).toHaveLength(30)
  // of seven a second the first of each half
  expect(kept(2)).toEqual([0, 4, 7, 11, 14, 18, 21, 25, 28])
  expect(kept(25)).toHaveLength(30)
})

test('a camera that gives fewer pictures than are asked of it is said to, every ten seconds, and no longer when it does not', () => {
  const pace = new Pace(5)
  const said: string[] = []
  let now = 0
  const play = (seconds: number, rate: number): void => {
    for (let picture = 0; picture < seconds * rate; picture += 1) {
      now += 1000 / rate
      const slow = pace.came(now)
      if (slow !== undefined) said.push(slow)
    }
  }
  play(21, 5)
  play(30, 2)
  play(21, 5)
  expect(said[0]).toBe('')
  expect(said).toContain('it gives 2.0 of 5 pictures a second')
  expect(said.at(-1)).toBe('')
  expect(said.length).toBeLessThanOrEqual(7)
})

const moved = new Uint8Array(motionWidth * motionHeight).fill(200)
const motion = { threshold: 0.01, hold: 2, heartbeat: 10, areas: [], ignore: [] }

test('a clock that is set back does not silence a camera until the time has come again', () => {
  const gate = new MotionGate(motion, 5)
  const hours = 7_200_000
  gate.judge(still, hours)
  expect(gate.judge(moved, hours + 200)).toMatchObject({ keep: true, why: 'motion' })
  expect(gate.judge(still, 400)).toMatchObject({ keep: true })
  gate.judge(still, 3_000)
  expect(gate.judge(moved, 3_200)).toMatchObject({ keep: true, why: 'motion' })
})

test.each([6, 10, 15, 20])('of %i pictures a second that a burst makes a source give, as many are kept as were asked for', (given) => {
  const wanted = given === 6 ? 5 : given - 5
  const gate = new MotionGate({ ...motion, hold: 60, burst: { framesPerSecond: given, seconds: 0 } }, wanted)
  gate.judge(still, 0)
  const kept = Array.from({ length: given * 10 }, (_, n) => gate.judge(n % 2 ? moved : still, Math.round(((n + 1) * 1000) / given))).filter(({ keep }) => keep).length
  expect(kept / 10).toBeGreaterThan(wanted * 0.95)
  expect(kept / 10).toBeLessThan(wanted * 1.05)
})

test('a channel that is called 401 is no refusal, and a refusal is one', () => {
  const at = 'rtsp://10.0.0.7/Streaming/Channels/401'
  expect(failureOf(`[tcp @ 0x1] Connection to tcp://10.0.0.7:554 failed: Connection refused\n${at}: Connection refused`)).toMatchObject({ state: 'backing off' })
  expect(failureOf(`[rtsp @ 0x1] method DESCRIBE failed: 401 Unauthorized\n${at}: Server returned 401 Unauthorized (authorization failed)`)).toMatchObject({ state: 'refused' })
  expect(failureOf('[rtsp @ 0x1] method DESCRIBE failed: 404 Stream Not Found')).toMatchObject({ state: 'refused' })
  expect(failureOf('[h264 @ 0x1] concealing 404 DC, 404 AC errors')).toMatchObject({ state: 'backing off' })
})

test('a mask covers every pixel it reaches, to the last column and row', async () => {
  const { execFileSync } = await import('node:child_process')
  for (const [width, height, mask] of [
    [192, 108, [0.33, 0, 0.67, 1]],
    [128, 72, [0.8, 0.77, 0.2, 0.23]],
  ] as const) {
    const filters = finishingFilters({ masks: [[...mask]] })
    const input = ['-v', 'error', '-f', 'lavfi', '-i', `color=white:size=${width}x${height}:duration=1:rate=1,format=gray`]
    const gray = execFileSync('ffmpeg', [...input, '-vf', filters.join(','), '-frames:v', '1', '-pix_fmt', 'gray', '-f', 'rawvideo', '-'])
    const white = { bytes: await jpegOf(255, width, height), extension: 'jpg', kind: 'image', capturedAt: 0, width, height, sourceName: '', newPass: false } as const
    const finished = await finishPicture(white, { id: 'c', address: '', masks: [[...mask]], quality: 2 })
    const { data, info } = await sharp(finished.bytes).toColourspace('b-w').raw().toBuffer({ resolveWithObject: true })
    for (const pixels of [gray, data]) {
      expect([info.width, info.height]).toEqual([width, height])
      expect(pixels[width * height - 1], `${width}x${height}`).toBeLessThan(60)
      expect(pixels[width * (height - 1) - 1]).toBeLessThan(60)
      expect(pixels[0]).toBeGreaterThan(200)
    }
  }
})
