import { medianPicture } from '@frameloop/stream-processors/picture/median'
import { expect, test } from 'vitest'
import { digestOf, readModel, writeModel } from './model-files.ts'
import { buildNetwork, writeInput } from './network.ts'

test('the median picture is the median of every value', () => {
  expect([...medianPicture([Uint8Array.of(1, 200), Uint8Array.of(9, 100), Uint8Array.of(5, 0)])]).toEqual([5, 100])
})

test('the input is the distance to the reference, mirrored by pixels and not by channels', () => {
  const crop = Uint8Array.of(10, 20, 30, 40, 50, 60)
  const reference = Uint8Array.of(0, 0, 0, 40, 50, 60)
  const out = new Float32Array(6)
  writeInput(out, 0, crop, reference, { width: 2, channels: 3 })
  expect([...out].map((value) => Math.round((value * 255) / 4))).toEqual([10, 20, 30, 0, 0, 0])
  writeInput(out, 0, crop, reference, { width: 2, channels: 3 }, { gain: 1, bias: 0, flip: true })
  expect([...out].map((value) => Math.round((value * 255) / 4))).toEqual([0, 0, 0, 10, 20, 30])
})

test('a model read back from its files answers as before, and one with a flipped bit is refused', async () => {
  const model = buildNetwork([16, 16, 3], 2, 3)
  const references = new Map([['c z', new Uint8Array(16 * 16 * 3).fill(90)]])
  const files = await writeModel(model, references, {
    task: 't',
    classes: ['a', 'b'],
    width: 16,
    height: 16,
    channels: 3,
    referencePictures: {},
    preprocessing: 'p',
    seed: 3,
    datasetDigest: 'd',
    cutAt: new Date(0).toISOString(),
  })
  const digest = digestOf(files)
  const example = { referenceKey: 'c z', pixels: new Uint8Array(16 * 16 * 3).map((_, at) => (at * 31) % 256) }
  const first = (await readModel(files, digest)).predict([example])
  const again = await readModel(new Map([...files].map(([name, bytes]) => [name, Buffer.from(bytes)])), digest)
  expect(again.predict([example])).toEqual(first)
  expect((first[0] ?? []).reduce((sum, score) => sum + score, 0)).toBeCloseTo(1)
  const broken = new Map(files)
  const weights = Buffer.from(files.get('weights.bin') ?? '')
  weights[40] = (weights[40] ?? 0) ^ 1
  broken.set('weights.bin', weights)
  await expect(readModel(broken, digest)).rejects.toMatchObject({ code: 'MODEL_INVALID' })
})
