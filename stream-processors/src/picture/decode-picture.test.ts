import { readJpegHeader } from '@frameloop/kit/jpeg-header'
import sharp from 'sharp'
import { beforeAll, expect, test } from 'vitest'
import { areaResize } from './area-resize.ts'
import { chooseScale, decodePicture, sniffPicture } from './decode-picture.ts'
import { jpegDecoder } from './jpeg-decoder.ts'

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

test('at full size the pixels are those of sharp', async () => {
  const ours = await decodePicture(jpeg)
  const theirs = await sharp(jpeg).raw().toBuffer()
  expect(Buffer.from(ours.rgb).equals(theirs)).toBe(true)
})

test('a PNG is decoded by content, whatever it is called', async () => {
  expect(sniffPicture(png)).toBe('png')
  expect(await decodePicture(png)).toMatchObject({ width, height, scale: 1 })
})

test('a large picture is shrunk while decoding, but never below twice what is wanted', () => {
  expect(chooseScale(1920, 1080, 64, 64)).toBe(8)
  expect(chooseScale(768, 576, 192, 144)).toBe(2)
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

/** The same JPEG claiming another size. */
function withSize(bytes: Buffer, wide: number, high: number): Buffer {
  const copy = Buffer.from(bytes)
  const at = copy.indexOf(Buffer.from([0xff, 0xc0]))
  copy.writeUInt16BE(high, at + 5)
  copy.writeUInt16BE(wide, at + 7)
  return copy
}

test('an area average of whole ratios is the mean of the pixels it covers', () => {
  const small = areaResize(raw, width, { x: 0, y: 0, width: 320, height: 200 }, 160, 100)
  const mean = ((raw[0] ?? 0) + (raw[3] ?? 0) + (raw[width * 3] ?? 0) + (raw[width * 3 + 3] ?? 0)) / 4
  expect(Math.abs((small[0] ?? 0) - mean)).toBeLessThanOrEqual(0.5)
})

test('a crop at its own size is copied unchanged', () => {
  const crop = areaResize(raw, width, { x: 10, y: 5, width: 20, height: 10 }, 20, 10)
  expect(crop[0]).toBe(raw[(5 * width + 10) * 3])
  expect(crop.at(-1)).toBe(raw[(14 * width + 29) * 3 + 2])
})
