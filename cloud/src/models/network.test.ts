import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { assemble } from '@frameloop/kit/assemble'
import { medianPicture } from '@frameloop/stream-processors/picture/median'
import type * as TF from '@tensorflow/tfjs-node'
import { expect, test } from 'vitest'
import { digestOf, type ModelFiles } from './model-files.ts'
import { writeInput } from './model-input.ts'
import { buildNetwork } from './network.ts'
import { engineNames, openPredictor } from './predictor.ts'
import { tf } from './tensorflow.ts'
import { writeModel } from './write-model.ts'

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

test('the kernel is what its source says', async () => {
  expect(readFileSync(new URL('./distance-kernel.ts', import.meta.url), 'utf8')).toBe(await assemble(fileURLToPath(new URL('./distance.wat', import.meta.url))))
})

test('inputs of any size are written whole, whatever was written before', () => {
  for (const size of [1, 15, 16, 17, 3_000, 5]) {
    const crop = new Uint8Array(size).map((_, at) => (at * 91) % 256)
    const reference = new Uint8Array(size).map((_, at) => (at * 57 + 13) % 256)
    const out = new Float32Array(size + 2)
    writeInput(out, 1, crop, reference, { width: size, channels: 1 })
    const wanted = Float32Array.from(crop, (value, at) => Math.abs(value - (reference[at] as number)) * Math.fround(4 / 255))
    expect([...out.subarray(1, size + 1)]).toEqual([...wanted])
    expect([out[0], out[size + 1]]).toEqual([0, 0])
  }
})

test('what is served is what was trained: without augmentation the quick way gives what the general one gives', () => {
  const crop = new Uint8Array(65_536).map((_, at) => at >> 8)
  const reference = new Uint8Array(65_536).map((_, at) => at)
  const [quick, general] = [new Float32Array(crop.length), new Float32Array(crop.length)]
  for (const against of [reference, undefined]) {
    writeInput(quick, 0, crop, against, { width: 256, channels: 1 })
    writeInput(general, 0, crop, against, { width: 256, channels: 1 }, { gain: 1, bias: 0, flip: false })
    expect(
      Math.max(
        ...Array.from({ length: 256 }, (_, row) =>
          Math.max(...quick.subarray(row * 256, row * 256 + 256).map((value, at) => Math.abs(value - (general[row * 256 + at] as number)))),
        ),
      ),
    ).toBeLessThan(1e-6)
  }
})

const example = { referenceKey: 'c z', pixels: new Uint8Array(16 * 16 * 3).map((_, at) => (at * 31) % 256) }
/** `bias`: of the last layer; it tells one model from another. */
const write = (bias = 0): Promise<ModelFiles> => {
  const about = {
    task: 't',
    classes: ['a', 'b'],
    width: 16,
    height: 16,
    channels: 3,
    referencePictures: {},
    preprocessing: 'p',
    preprocessingParameters: { width: 16, height: 16 },
  }
  const references = new Map([['c z', new Uint8Array(16 * 16 * 3).fill(90)]])
  const network = buildNetwork([16, 16, 3], 2, 3)
  const last = network.layers.at(-1)
  last?.setWeights([last.getWeights()[0] as TF.Tensor, tf.tensor1d([bias, bias])])
  return writeModel(network, references, [example], { ...about, seed: 3, datasetDigest: 'd', cutAt: new Date(0).toISOString() })
}
const withFile = (files: ModelFiles, name: string, change: (bytes: Buffer) => Buffer): ModelFiles => new Map(files).set(name, change(Buffer.from(files.get(name) ?? '')))

test('a model read back from its files answers the same with every engine, and one with a flipped bit is refused', async () => {
  const files = await write()
  const digest = digestOf(files)
  const answers = new Map<string, readonly number[]>()
  for (const engine of engineNames) {
    const predictor = await openPredictor(files, digest, [engine])
    expect(predictor).toMatchObject({ engine, why: '' })
    answers.set(
      engine,
      (await predictor.predict([example, { ...example, referenceKey: 'unknown' }])).flatMap((scores) => scores ?? []),
    )
  }
  const [first = []] = answers.values()
  for (const [engine, scores] of answers) for (const [at, score] of scores.entries()) expect(Math.abs(score - (first[at] ?? 1)), engine).toBeLessThan(1e-4)
  expect((first[0] ?? 0) + (first[1] ?? 0)).toBeCloseTo(1)
  const flipped = withFile(files, 'weights.bin', (bytes) => {
    bytes[40] = (bytes[40] ?? 0) ^ 1
    return bytes
  })
  await expect(openPredictor(flipped, digest)).rejects.toMatchObject({ code: 'MODEL_INVALID' })
})

test('a form that answers otherwise than when the model was registered is refused, whatever its digest', async () => {
  const files = await write()
  const other = await write(5)
  const mixed = new Map(files).set('model.onnx', other.get('model.onnx') ?? Buffer.alloc(0))
  await expect(openPredictor(mixed, digestOf(mixed))).rejects.toThrow(/With onnxruntime the model answers its probe 1 otherwise/)
})

test('where ONNX Runtime cannot run it TF.js does, and says why', async () => {
  const files = withFile(await write(), 'model.onnx', (bytes) => bytes.subarray(0, 20))
  expect(await openPredictor(files, digestOf(files))).toMatchObject({ engine: 'tfjs', why: expect.stringMatching(/^onnxruntime does not load: /) as string })
})

test('where nothing native loads it runs in WebAssembly, and TensorFlow is used as before', async () => {
  const files = withFile(await write(), 'model.onnx', (bytes) => bytes.subarray(0, 20))
  const predictor = await openPredictor(files, digestOf(files), ['onnxruntime', 'tfjs-wasm'])
  expect(predictor).toMatchObject({ engine: 'tfjs-wasm', why: expect.stringMatching(/^onnxruntime does not load: /) as string })
  expect((await predictor.predict([example]))[0]).toHaveLength(2)
  expect(tf.getBackend()).toBe('tensorflow')
})

test('a network that answers with something that is no number is refused', async () => {
  const files = await write(Number.NaN)
  await expect(openPredictor(files, digestOf(files))).rejects.toThrow('The model answered with something that is no number')
})
