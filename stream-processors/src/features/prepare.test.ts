import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { assemble } from '@frameloop/kit/assemble'
import fc from 'fast-check'
import sharp from 'sharp'
import { expect, test } from 'vitest'
import { decodePicture, type Picture } from '../picture/decode-picture.ts'
import { denoise, equalise, sharpen } from '../picture/filters.ts'
import { resize } from '../picture/resize.ts'
import { filters, kernels, type Preprocessing, prepareZone, preprocessingDigest } from './prepare.ts'

const width = 160
const height = 120
const rgb = new Uint8Array(width * height * 3)
for (let y = 0; y < height; y += 1)
  for (let x = 0; x < width; x += 1) for (let c = 0; c < 3; c += 1) rgb[(y * width + x) * 3 + c] = 60 + 50 * Math.sin(x / 9 + c) + 40 * Math.cos(y / 7) + 30
const pictureOf = (pixels: Uint8Array): Picture => ({ width, height, rgb: pixels, scale: 1, fullWidth: width, fullHeight: height })
const zone = { zone: 'z', x: 20, y: 10, width: 96, height: 96, pictureWidth: width, pictureHeight: height }

const decibels = (one: Uint8Array, other: Uint8Array): number => {
  const mean = one.reduce((sum, value, at) => sum + (value - (other[at] ?? 0)) ** 2, 0) / one.length
  return mean === 0 ? Number.POSITIVE_INFINITY : 10 * Math.log10(255 ** 2 / mean)
}

test.each([
  ['linear', 'linear'],
  ['cubic', 'cubic'],
  ['lanczos', 'lanczos3'],
] as const)('%s gives what libvips gives', async (kernel, theirs) => {
  const raw = sharp(rgb, { raw: { width, height, channels: 3 } })
  const expected = await raw.resize(40, 30, { fit: 'fill', kernel: theirs, fastShrinkOnLoad: false }).raw().toBuffer()
  expect(decibels(resize(rgb, width, { x: 0, y: 0, width, height }, 40, 30, kernel), expected)).toBeGreaterThan(45)
})

test('the committed WebAssembly is what resize.wat says', async () => {
  expect(readFileSync(new URL('../picture/resize-kernel.ts', import.meta.url), 'utf8')).toBe(await assemble(fileURLToPath(new URL('../picture/resize.wat', import.meta.url))))
})

test('area is the weighted mean of what each pixel covers, for any crop and size', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 60 }),
      fc.integer({ min: 1, max: 60 }),
      fc.integer({ min: 1, max: 40 }),
      fc.integer({ min: 1, max: 40 }),
      (wide, high, toWide, toHigh) => {
        fc.pre(toWide < wide && toHigh < high)
        const crop = { x: 160 - wide, y: 120 - high, width: wide, height: high }
        const out = resize(rgb, width, crop, toWide, toHigh)
        for (const [i, j] of [
          [0, 0],
          [toWide - 1, toHigh - 1],
          [toWide >> 1, toHigh >> 1],
        ] as const) {
          let sum = 0
          for (let y = 0; y < high; y += 1) {
            const down = Math.max(0, Math.min(y + 1, ((j + 1) * high) / toHigh) - Math.max(y, (j * high) / toHigh))
            for (let x = 0; down > 0 && x < wide; x += 1) {
              const across = Math.max(0, Math.min(x + 1, ((i + 1) * wide) / toWide) - Math.max(x, (i * wide) / toWide))
              sum += across * down * (rgb[((crop.y + y) * width + crop.x + x) * 3] ?? 0)
            }
          }
          expect(Math.abs((out[(j * toWide + i) * 3] ?? 0) - (sum * toWide * toHigh) / wide / high)).toBeLessThan(0.51)
        }
      },
    ),
  )
})

test.each(kernels)('what has the right size already is cut out, and that is what the kernel %s gives of it', (kernel) => {
  const rgb = new Uint8Array(40 * 30 * 3).map((_, at) => (at * 97 + (at >> 4)) % 256)
  for (const crop of [
    { x: 3, y: 2, width: 20, height: 10 },
    { x: 0, y: 4, width: 40, height: 20 },
  ]) {
    const cut = resize(rgb, 40, crop, crop.width, crop.height, kernel)
    expect(cut).toEqual(resize(rgb, 40, { ...crop, width: crop.width + 1e-9 }, crop.width, crop.height, kernel))
  }
})

test('a flat picture stays flat under every kernel, enlarged or shrunk', () => {
  const flat = new Uint8Array(width * height * 3).fill(117)
  for (const kernel of kernels)
    for (const side of [7, 96, 300]) expect(new Set(resize(flat, width, { x: 3, y: 3, width: 90, height: 80 }, side, side, kernel))).toEqual(new Set([117]))
})

test('equalising spreads luma over the whole range and keeps colour differences; a flat picture is left alone', () => {
  const gray = Uint8Array.from({ length: 1024 }, (_, at) => 100 + (at % 16))
  const spread = equalise(gray, 1)
  expect([Math.min(...spread), Math.max(...spread)]).toEqual([0, 255])
  const colour = Uint8Array.of(10, 10, 10, 100, 110, 90, 100, 110, 90, 200, 200, 200)
  const out = equalise(colour, 3)
  expect((out[4] ?? 0) - (out[3] ?? 0)).toBe(10)
  expect([...equalise(new Uint8Array(64).fill(9), 1)]).toEqual([...new Uint8Array(64).fill(9)])
})

test('denoising takes out one wild pixel, sharpening makes a step steeper', () => {
  const wild = new Uint8Array(25).fill(50)
  wild[12] = 255
  expect([...denoise(wild, 5, 5, 1)]).toEqual([...new Uint8Array(25).fill(50)])
  const step = Uint8Array.from({ length: 36 }, (_, at) => (at % 6 < 3 ? 100 : 150))
  expect([...sharpen(step, 6, 6, 1).subarray(12, 18)]).toEqual([100, 100, 83, 167, 150, 150])
})

test('a zone of an empty scene differs from its reference nowhere, and something in it shows', () => {
  const preprocessing: Preprocessing = { width: 32, height: 32, colour: 'gray', filters: ['difference'] }
  const empty = pictureOf(rgb)
  expect(new Set(prepareZone(empty, zone, preprocessing, empty).pixels)).toEqual(new Set([0]))
  const changed = new Uint8Array(rgb)
  for (let y = 40; y < 60; y += 1) changed.fill(255, (y * width + 50) * 3, (y * width + 70) * 3)
  const { pixels, quality } = prepareZone(pictureOf(changed), zone, preprocessing, empty)
  expect(pixels).toHaveLength(32 * 32)
  expect(Math.max(...pixels)).toBeGreaterThan(100)
  // figures are of the picture, not of the difference
  expect(quality.brightness).toBeGreaterThan(60)
})

test('the reference goes through what comes before the difference', () => {
  const empty = pictureOf(rgb)
  for (const before of filters.filter((name) => name !== 'difference'))
    expect(new Set(prepareZone(empty, zone, { width: 24, height: 24, filters: [before, 'difference'] }, empty).pixels)).toEqual(new Set([0]))
})

test('every parameter is part of the name, and what is not stated is not', () => {
  const plain = { width: 64, height: 64 }
  const others: Preprocessing[] = [
    { width: 96, height: 64 },
    { ...plain, kernel: 'linear' },
    { ...plain, colour: 'gray' },
    { ...plain, filters: ['equalise'] },
    { ...plain, filters: ['equalise', 'sharpen'] },
    { ...plain, filters: ['sharpen', 'equalise'] },
  ]
  expect(new Set([plain, ...others].map(preprocessingDigest)).size).toBe(others.length + 1)
  expect(preprocessingDigest({ ...plain, kernel: 'area', colour: 'rgb', filters: [] })).toBe(preprocessingDigest(plain))
})

test('a zone keeps its place whatever the scale of decoding: at a quarter it is what the whole picture gives, shrunk', async () => {
  const large = await sharp(rgb, { raw: { width, height, channels: 3 } })
    .resize(width * 8, height * 8, { kernel: 'cubic' })
    .jpeg({ quality: 95 })
    .toBuffer()
  const odd = { zone: 'z', x: 333, y: 217, width: 501, height: 403, pictureWidth: width * 8, pictureHeight: height * 8 }
  const full = await decodePicture(large)
  for (const [scale, least] of [
    [2, 45],
    [4, 40],
  ] as const) {
    const shrunk = await decodePicture(large, { atLeast: { width: (width * 8) / scale, height: (height * 8) / scale } })
    expect(shrunk.scale).toBe(scale)
    expect(decibels(prepareZone(shrunk, odd, { width: 64, height: 64 }).pixels, prepareZone(full, odd, { width: 64, height: 64 }).pixels)).toBeGreaterThan(least)
  }
})
