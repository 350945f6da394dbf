import { readJpegHeader } from '@frameloop/kit/jpeg-header'
import sharp from 'sharp'
import { beforeAll, expect, test } from 'vitest'
import { chooseScale, decodePicture } from './decode-picture.ts'
import { jpegDecoder } from './jpeg-decoder.ts'
import { sniffPicture } from './picture-header.ts'
import { resize } from './resize.ts'

const width = 320
const height = 200
const raw = new Uint8Array(width * height * 3)
for (let at = 0; at < raw.length; at += 1) raw[at] = (at * 7 + Math.floor(at / 3 / width) * 3) % 251
let jpeg: Buffer
let png: Buffer

beforeAll(async () => {
  const picture = sharp(raw, { raw: { width, height, channels: 3 } }).blur(2)
  jpeg = await picture.clone().jpeg({ quality: 85 }).toBuffer()
  png = await picture.clone().png().toBuffer()
})

test('the native and the WebAssembly decoder give the same bits at every scale', () => {
  const header = readJpegHeader(jpeg)
  if (!header) throw new Error('the test picture has no header')
  for (const scale of [1, 2, 4, 8] as const)
    expect(Buffer.from(jpegDecoder('wasm').decode(jpeg, header, scale)).equals(Buffer.from(jpegDecoder().decode(jpeg, header, scale)))).toBe(true)
})

test('a JPEG that says two sizes is not decoded into room for one of them', () => {
  const header = readJpegHeader(jpeg)
  if (!header) throw new Error('the test picture has no header')
  for (const decoder of [jpegDecoder(), jpegDecoder('wasm')]) {
    expect(() => decoder.decode(jpeg, { ...header, width: header.width - 8 }, 1)).toThrow('it says two sizes')
    expect(decoder.decode(jpeg, header, 1)).toHaveLength(header.width * header.height * 3)
  }
})

test('at full size the pixels are those of sharp', async () => {
  const ours = await decodePicture(jpeg)
  const theirs = await sharp(jpeg).raw().toBuffer()
  expect(Buffer.from(ours.rgb).equals(theirs)).toBe(true)
})

test('a PNG is decoded by content, whatever it is called', async () => {
  expect(sniffPicture(png)).toBe('png')
  expect(await decodePicture(png)).toMatchObject({ width, height, scale: 1 })
})

test('a large picture is shrunk while decoding, but never below what is wanted', () => {
  expect(chooseScale(1920, 1080, 64, 64)).toBe(8)
  expect(chooseScale(768, 576, 192, 144)).toBe(4)
  expect(chooseScale(768, 576, 193, 144)).toBe(2)
  expect(chooseScale(64, 64, 64, 64)).toBe(1)
})

test.each([
  ['a text file named .jpg', () => Buffer.from('this is no picture'), 'PICTURE_UNREADABLE'],
  ['a JPEG cut in half', () => jpeg.subarray(0, jpeg.length / 2), 'PICTURE_UNREADABLE'],
  ['a JPEG of 40000 x 40000 pixels', () => withSize(jpeg, 40_000, 40_000), 'PICTURE_TOO_LARGE'],
  ['a PNG cut in half', () => png.subarray(0, png.length / 2), 'PICTURE_UNREADABLE'],
])('%s is refused with a code', async (_, make, code) => {
  await expect(decodePicture(make())).rejects.toMatchObject({ code })
})

test('bombs are refused by their header, in under 5 ms and without taking memory', async () => {
  const webp = await sharp({ create: { width: 16, height: 16, channels: 3, background: '#123' } })
    .webp({ lossless: true })
    .toBuffer()
  const hugeWebp = Buffer.from(webp)
  // VP8L: two times 14 bits of size less one
  hugeWebp.writeUInt32LE(0x0fffffff, 21)
  const hugePng = Buffer.from(png)
  hugePng.writeUInt32BE(100_000, 16)
  hugePng.writeUInt32BE(100_000, 20)
  const frames = { raw: { width: 8, height: 16, channels: 3, pageHeight: 8 } } as const
  const animated = await sharp(raw.subarray(0, 8 * 16 * 3), frames)
    .webp({ loop: 0, delay: [10, 10], lossless: true })
    .toBuffer()
  for (const [bomb, code] of [
    [withSize(jpeg, 20_000, 20_000), 'PICTURE_TOO_LARGE'],
    [hugePng, 'PICTURE_TOO_LARGE'],
    [hugeWebp, 'PICTURE_TOO_LARGE'],
    [animated, 'PICTURE_ANIMATED'],
    [Buffer.concat([Buffer.from('GIF89a'), Buffer.alloc(1000)]), 'PICTURE_UNREADABLE'],
  ] as const) {
    const before = process.memoryUsage().rss
    // the quickest of a few: the machine may be busy with other tests
    const times: number[] = []
    for (let round = 0; round < 10; round += 1) {
      const since = performance.now()
      await decodePicture(bomb).then(
        () => expect.unreachable(),
        (thrown: { code?: string }) => expect(thrown.code).toBe(code),
      )
      times.push(performance.now() - since)
    }
    expect(Math.min(...times)).toBeLessThan(5)
    expect(process.memoryUsage().rss - before).toBeLessThan(50e6)
  }
})

test('500 damaged JPEGs are each decoded or refused with a code, and never the good one after them', async () => {
  const good = (await decodePicture(jpeg)).rgb
  let state = 20_261
  const random = (below: number): number => {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31
    return state % below
  }
  let refused = 0
  for (let round = 0; round < 500; round += 1) {
    const copy = Buffer.from(round % 3 === 0 ? jpeg.subarray(0, 10 + random(jpeg.length - 10)) : jpeg)
    for (let change = 0; change < 1 + random(8); change += 1) copy[random(copy.length)] = random(256)
    await decodePicture(copy, { atLeast: { width: 80, height: 60 } }).catch((thrown: { code?: string }) => {
      expect(thrown.code).toMatch(/^PICTURE_/)
      refused += 1
    })
    expect(Buffer.from((await decodePicture(jpeg)).rgb).equals(Buffer.from(good))).toBe(true)
  }
  expect(refused).toBeGreaterThan(150)
})

/** The same JPEG claiming another size. */
function withSize(bytes: Buffer, wide: number, high: number): Buffer {
  const copy = Buffer.from(bytes)
  const at = copy.indexOf(Buffer.from([0xff, 0xc0]))
  copy.writeUInt16BE(high, at + 5)
  copy.writeUInt16BE(wide, at + 7)
  return copy
}

test('an area average of whole ratios is the mean of the pixels it covers', () => {
  const small = resize(raw, width, { x: 0, y: 0, width: 320, height: 200 }, 160, 100)
  const mean = ((raw[0] ?? 0) + (raw[3] ?? 0) + (raw[width * 3] ?? 0) + (raw[width * 3 + 3] ?? 0)) / 4
  expect(Math.abs((small[0] ?? 0) - mean)).toBeLessThanOrEqual(0.5)
})

test('a crop at its own size is copied unchanged', () => {
  const crop = resize(raw, width, { x: 10, y: 5, width: 20, height: 10 }, 20, 10)
  expect(crop[0]).toBe(raw[(5 * width + 10) * 3])
  expect(crop.at(-1)).toBe(raw[(14 * width + 29) * 3 + 2])
})
