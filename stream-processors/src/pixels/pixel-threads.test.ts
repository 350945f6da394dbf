import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { Fault } from '@frameloop/kit/fault'
import { build } from 'esbuild'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { TaskZone } from '../features/zones.ts'
import { openPixelThreads, type PixelThreads } from './pixel-threads.ts'
import { groupZones, pixelWork } from './pixel-work.ts'

const here = fileURLToPath(new URL('.', import.meta.url))
// inside the project, where packages are found
const home = fileURLToPath(new URL('../../../.frameloop', import.meta.url))
mkdirSync(home, { recursive: true })
const folder = mkdtempSync(join(home, 'test-'))
let threads: PixelThreads

beforeAll(async () => {
  const outfile = `${folder}/pixel-thread.mjs`
  await build({ entryPoints: [`${here}pixel-thread.ts`], outfile, bundle: true, platform: 'node', format: 'esm', external: ['piscina', 'sharp', 'koffi'] })
  threads = openPixelThreads(2, pathToFileURL(outfile))
})
afterAll(async () => {
  await threads.close()
  rmSync(folder, { recursive: true })
})

const noise = (seed: number): Promise<Buffer> => {
  const rgb = Buffer.alloc(640 * 480 * 3)
  for (let at = 0; at < rgb.length; at += 1) rgb[at] = (at * seed + (at >> 7)) & 255
  return sharp(rgb, { raw: { width: 640, height: 480, channels: 3 } })
    .jpeg()
    .toBuffer()
}
const shape = { zone: 'a', x: 11, y: 7, width: 200, height: 160, pictureWidth: 640, pictureHeight: 480 }
const object = (sha256: string) => ({ bucket: 'b', key: 'k', sha256, bytes: 1, versionId: '', contentType: 'image/png' })
const zones: readonly TaskZone[] = [
  { shape, task: 'one', preprocessing: { width: 64, height: 64 } },
  { shape, task: 'two', preprocessing: { width: 64, height: 64 } },
  { shape: { ...shape, zone: 'b', x: 300 }, task: 'one', preprocessing: { width: 64, height: 64 } },
  { shape, task: 'three', preprocessing: { width: 32, height: 48, colour: 'gray', filters: ['difference'] }, reference: object('r1') },
]

test('threads give what the same thread gives, whichever of them answers', async () => {
  const png = await sharp(await noise(5))
    .png()
    .toBuffer()
  const shared = new Uint8Array(new SharedArrayBuffer(png.length))
  shared.set(png)
  const references = new Map([['r1', shared]])
  const pictures = await Promise.all(Array.from({ length: 12 }, (_, at) => noise(at + 3)))
  const expected = await Promise.all(pictures.map((jpeg) => pixelWork.prepare(jpeg, zones, references)))
  expect(await Promise.all(pictures.map((jpeg) => threads.prepare(jpeg, zones, references)))).toEqual(expected)
  expect(expected[0]?.groups.map(({ zones: prepared }) => prepared.map(({ zone, tasks }) => `${zone} ${tasks}`))).toEqual([['a one,two', 'b one'], ['a three']])
  const looks = await Promise.all(pictures.map((jpeg) => threads.look(jpeg)))
  expect(looks).toEqual(await Promise.all(pictures.map((jpeg) => pixelWork.look(jpeg))))
  // what was sent stays whole for whoever sent it
  expect(pictures.every(({ length }) => length > 0)).toBe(true)
})

test('a refusal keeps its code and its sentence on the way between threads', async () => {
  const cut = (await noise(3)).subarray(0, 2_000)
  await expect(threads.look(cut)).rejects.toMatchObject({ code: 'PICTURE_UNREADABLE', message: expect.stringContaining('JPEG') })
  await expect(threads.prepare(Buffer.from('no picture'), zones, new Map())).rejects.toMatchObject({ code: 'PICTURE_UNREADABLE' })
})

test('zones with the same preprocessing and reference picture are one group, others are apart', () => {
  const other = zones.map((zone) => (zone.reference ? { ...zone, reference: object('r2') } : zone))
  expect(groupZones([...zones, ...other.filter(({ reference }) => reference)]).map(({ reference }) => reference)).toEqual([undefined, 'r1', 'r2'])
})

test('two tasks that mean different places by one name get their own pixels each', async () => {
  const elsewhere = { shape: { ...shape, x: 400, y: 300 }, task: 'two', preprocessing: { width: 64, height: 64 } }
  const { groups } = await pixelWork.prepare(await noise(3), [zones[0] as TaskZone, elsewhere], new Map())
  expect(groups.flatMap((group) => group.zones.map(({ zone, tasks, rectangle }) => `${zone} ${tasks} ${rectangle.x}`))).toEqual(['a one 11', 'a two 400'])
})

/** Answers with the first byte, dies of a 1 and never ends with a 2. */
const treacherous = `
export async function look([bytes]) {
  await new Promise((resolve) => setTimeout(resolve, 50))
  if (bytes[0] === 1) process.exit(1)
  while (bytes[0] === 2);
  return { result: { brightness: bytes[0] }, room: bytes.buffer }
}`

test('T3: a picture that kills its thread or never ends fails by itself, and those beside it are answered', async () => {
  const program = join(folder, 'treacherous.mjs')
  writeFileSync(program, treacherous)
  const own = openPixelThreads(2, pathToFileURL(program), 5_000)
  const pictures = [9, 1, 8, 7, 2, 6, 1, 5]
  const looks = await Promise.allSettled(pictures.map((first) => own.look(new Uint8Array([first]))))
  expect(looks.map((look) => (look.status === 'fulfilled' ? look.value.brightness : look.reason instanceof Fault ? look.reason.code : 'died'))).toEqual([
    ...[9, 'died', 8, 7, 'PICTURE_UNREADABLE', 6, 'died', 5],
  ])
  await own.close()
}, 60_000)
