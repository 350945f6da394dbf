import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import type * as TF from '@tensorflow/tfjs-node'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { bundle } from '../../../deploy/setup/build.mjs'
import { digestOf, type ModelFiles } from '../models/model-files.ts'
import { referenceKey } from '../models/model-input.ts'
import { buildNetwork } from '../models/network.ts'
import { openPredictor, type Predictor } from '../models/predictor.ts'
import { tf } from '../models/tensorflow.ts'
import { writeModel } from '../models/write-model.ts'
import { Engine, nextBatch, threadsFor } from './engine.ts'

const home = fileURLToPath(new URL('../../../.frameloop', import.meta.url))
mkdirSync(home, { recursive: true })
const folder = mkdtempSync(join(home, 'test-'))
let engine: Engine

beforeAll(async () => {
  await bundle({ 'engine-thread': 'cloud/src/serve/engine-thread.ts' }, folder)
  engine = new Engine(2, undefined, pathToFileURL(join(folder, 'engine-thread.mjs')))
})
afterAll(async () => {
  await engine.close()
  rmSync(folder, { recursive: true })
})

const size = 32 * 32 * 3
const pixelsOf = (seed: number): Uint8Array => new Uint8Array(size).map((_, at) => (at * seed + (at >> 5)) % 256)
const preprocessing = { width: 32, height: 32 }

async function aModel(seed: number, bias = 0): Promise<{ readonly digest: string; readonly files: ModelFiles }> {
  const network = buildNetwork([32, 32, 3], 2, seed)
  const last = network.layers.at(-1)
  last?.setWeights([last.getWeights()[0] as TF.Tensor, tf.tensor1d([bias, 0])])
  const about = {
    task: 't',
    classes: ['a', 'b'],
    ...preprocessing,
    channels: 3,
    preprocessing: preprocessingDigest(preprocessing),
    preprocessingParameters: preprocessing,
    referencePictures: {},
  }
  const files = await writeModel(network, new Map([['c z', pixelsOf(9)]]), [{ referenceKey: 'c z', pixels: pixelsOf(3) }], { ...about, seed, datasetDigest: 'd', cutAt: '' })
  network.dispose()
  return { files, digest: digestOf(files) }
}

test('hundreds of questions at once get the answers that each gets alone, whichever thread gives them', async () => {
  const { digest, files } = await aModel(1)
  expect(await engine.load(digest, files)).toMatchObject({ engine: 'onnxruntime', why: '', meta: { classes: ['a', 'b'] } })
  const alone = await openPredictor(files, digest)
  const inputs = Array.from({ length: 300 }, (_, at) => ({ referenceKey: at % 3 ? 'c z' : 'other', pixels: pixelsOf(at + 2) }))
  const replies = await Promise.all(inputs.map(({ pixels, referenceKey: key }) => engine.ask({ kind: 'pixels', digest, referenceKey: key }, pixels)))
  for (const [at, input] of inputs.entries()) {
    const [wanted = []] = await alone.predict([input])
    for (const [index, score] of (replies[at]?.scored[0]?.scores ?? []).entries()) expect(score).toBeCloseTo(wanted[index] ?? -1, 4)
  }
  await alone.dispose()
  await engine.unload(digest)
})

test('whoever sends something that is no number gets no answer, and takes none from those asked together with it', async () => {
  const { digest, files } = await aModel(5)
  await engine.load(digest, files)
  const tensor = (value: number): Uint8Array => new Uint8Array(new Float32Array(size).fill(value).buffer)
  const asked = await Promise.allSettled(Array.from({ length: 40 }, (_, at) => engine.ask({ kind: 'tensor', digest }, tensor(at % 8 === 0 ? Number.NaN : at / 40))))
  for (const [at, { status }] of asked.entries()) expect(status, `question ${at}`).toBe(at % 8 === 0 ? 'rejected' : 'fulfilled')
  expect(asked[0]).toMatchObject({ reason: { code: 'MODEL_INVALID', message: 'The model answered with something that is no number' } })
  await engine.unload(digest)
})

test('a picture of what is asked about, and zones of a whole one, are prepared as in training; a wrong one fails alone', async () => {
  const { digest, files } = await aModel(2)
  await engine.load(digest, files)
  const picture = (width: number, height: number): Promise<Buffer> =>
    sharp({ create: { width, height, channels: 3, background: { r: 90, g: 120, b: 30 } } })
      .jpeg({ quality: 95 })
      .toBuffer()
  const [crop, whole] = await Promise.all([picture(32, 32), picture(640, 480)])
  const shape = { zone: 'z', x: 100, y: 100, width: 64, height: 64, pictureWidth: 640, pictureHeight: 480 }
  const asked = await Promise.allSettled([
    engine.ask({ kind: 'picture', digest, referenceKey: 'c z' }, crop),
    engine.ask({ kind: 'picture', digest, referenceKey: 'c z' }, Buffer.from('no picture')),
    engine.ask({ kind: 'picture', digest, referenceKey: 'c z' }, whole),
    engine.ask({ kind: 'zones', cameraId: 'c', zones: [{ shape, task: 't', preprocessing }], references: new Map(), models: new Map([['t', digest]]) }, whole),
  ])
  expect(asked[1]).toMatchObject({ status: 'rejected', reason: { code: 'PICTURE_UNREADABLE' } })
  const [fromCrop, , fromWhole, fromZone] = asked.map((one) => (one.status === 'fulfilled' ? one.value.scored : []))
  expect(fromZone?.[0]).toMatchObject({ zone: 'z', task: 't', rectangle: { x: 100, y: 100, width: 64, height: 64 } })
  // one colour is one colour at any size
  for (const scored of [fromWhole, fromZone]) expect(scored?.[0]?.scores[0]).toBeCloseTo(fromCrop?.[0]?.scores[0] ?? -1, 3)
  expect(referenceKey('c', 'z')).toBe('c z')
  await engine.unload(digest)
})

test('two hundred models take the place of each other while questions come: none fails, and each is answered by the model it asked', async () => {
  const models = [await aModel(3, -8), await aModel(3, 8)]
  let current = models[0] as (typeof models)[number]
  await engine.load(current.digest, current.files)
  let isOver = false
  let answered = 0
  const ask = async (): Promise<void> => {
    while (!isOver) {
      const { digest } = current
      const { scored } = await engine.ask({ kind: 'pixels', digest, referenceKey: 'c z' }, pixelsOf(7))
      // the biases tell the two from each other
      expect((scored[0]?.scores[0] ?? 0.5) > 0.5).toBe(digest === models[1]?.digest)
      answered += 1
    }
  }
  const asking = Array.from({ length: 8 }, ask)
  for (let swap = 0; swap < 200; swap += 1) {
    const next = models[(swap + 1) % 2] as typeof current
    await engine.load(next.digest, next.files)
    const before = current
    current = next
    await engine.unload(before.digest)
  }
  isOver = true
  await Promise.all(asking)
  expect(answered).toBeGreaterThan(200)
  await engine.unload(current.digest)
}, 120_000)

test.each(['tfjs', 'tfjs-wasm'] as const)(
  'two hundred models of %s take the place of each other and leave no tensor behind',
  async (name) => {
    const models = [await aModel(3, -8), await aModel(3, 8)]
    const open = (at: number): Promise<Predictor> => {
      const { files, digest } = models[at % 2] as (typeof models)[number]
      return openPredictor(files, digest, [name])
    }
    const isFirst = async (predictor: Predictor): Promise<boolean> => ((await predictor.predict([{ referenceKey: 'c z', pixels: pixelsOf(7) }]))[0]?.[0] ?? 0.5) > 0.5
    let current = await open(0)
    const before = tf.memory().numTensors
    for (let swap = 1; swap <= 200; swap += 1) {
      const next = await open(swap)
      // both answer until the one before is let go
      expect([await isFirst(current), await isFirst(next)]).toEqual(swap % 2 === 1 ? [false, true] : [true, false])
      await current.dispose()
      current = next
      expect(tf.memory().numTensors).toBe(before)
    }
    await current.dispose()
    expect(tf.memory().numTensors).toBeLessThan(before)
  },
  120_000,
)

test('what nobody could answer in time is refused, and too much of it at once', async () => {
  const { digest, files } = await aModel(4)
  await expect(engine.ask({ kind: 'pixels', digest, referenceKey: '' }, pixelsOf(1))).rejects.toMatchObject({ code: 'MODEL_UNAVAILABLE' })
  await engine.load(digest, files)
  await expect(engine.ask({ kind: 'pixels', digest, referenceKey: '' }, pixelsOf(1), Date.now() - 1)).rejects.toMatchObject({ code: 'DEADLINE_PASSED' })
  await expect(engine.ask({ kind: 'pixels', digest, referenceKey: '' }, new Uint8Array(5))).rejects.toMatchObject({ code: 'REQUEST_INVALID' })
  const much = new Uint8Array(5_000_000)
  const all = await Promise.allSettled(Array.from({ length: 20 }, () => engine.ask({ kind: 'picture', digest, referenceKey: '' }, much)))
  expect(all.filter((one) => one.status === 'rejected' && (one.reason as { code: string }).code === 'OVERLOADED').length).toBe(8)
  expect(engine.waiting).toEqual({ questions: 0, bytes: 0 })
  await engine.unload(digest)
})

test('E5: a thread that dies fails what it had in hand, and another takes its place with the same models', async () => {
  const program = join(folder, 'mortal.mjs')
  writeFileSync(
    program,
    "import { parentPort } from 'node:worker_threads'\nimport './engine-thread.mjs'\nparentPort.on('message', ({ questions = [] }) => { if (questions.some(({ referenceKey }) => referenceKey === 'die')) process.exit(3) })\n",
  )
  const mortal = new Engine(2, undefined, pathToFileURL(program))
  const { digest, files } = await aModel(6)
  await mortal.load(digest, files)
  const ask = (key: string) => mortal.ask({ kind: 'pixels', digest, referenceKey: key }, pixelsOf(1))
  for (let death = 0; death < 3; death += 1) {
    await expect(ask('die')).rejects.toThrow('A thread that answers has ended with code 3')
    const replies = await Promise.allSettled(Array.from({ length: 20 }, () => ask('c z')))
    expect(replies.filter(({ status }) => status === 'fulfilled')).toHaveLength(20)
  }
  await mortal.close()
})

test('as many are taken together as are done in three milliseconds: hundreds of small ones, one of those that take long', () => {
  const learned = (perQuestion: number, rounds: number): number => Array.from({ length: rounds }).reduce<number>((limit) => nextBatch(limit, limit, limit * perQuestion), 4)
  expect(learned(0.1, 10)).toBe(30)
  expect(learned(0.01, 10)).toBe(256)
  expect(learned(30, 10)).toBe(1)
  // few came, and quickly: nothing is learned from that
  expect(nextBatch(64, 3, 1)).toBe(64)
})

test('the more a question takes here beside what it takes in a thread, the fewer threads get any', () => {
  expect(threadsFor(2, undefined, 1)).toBe(2)
  expect(threadsFor(2, 0.2, undefined)).toBe(2)
  expect(threadsFor(2, 0.2, 0.19)).toBe(1)
  expect(threadsFor(2, 1.3, 0.25)).toBe(2)
  expect(threadsFor(8, 0.2, 0.19)).toBe(4)
  expect(threadsFor(2, 0.01, 10)).toBe(1)
})

test('E6: small questions get one thread of two while the thread with the sockets is busy with them, and large ones both at the same time', async () => {
  const program = join(folder, 'paced.mjs')
  // takes as long as it is told, and answers with who it is
  writeFileSync(
    program,
    `import { parentPort, threadId } from 'node:worker_threads'
    parentPort.on('message', ({ kind, id, questions, packed }) => {
      if (kind === 'load') return parentPort.postMessage({ kind: 'loaded', id, loaded: { meta: {}, engine: 'onnxruntime', why: '' } })
      const ms = Number(questions[0].referenceKey) * questions.length
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
      parentPort.postMessage({ kind: 'answered', id, answers: questions.map(() => [{ scores: [threadId] }]), ms, room: packed.buffer }, [packed.buffer])
    })`,
  )
  const paced = new Engine(2, undefined, pathToFileURL(program))
  for (const digest of ['small', 'large']) await paced.load(digest, new Map())
  const who = async (digest: string, ms: number): Promise<number> => {
    const { scored } = await paced.ask({ kind: 'pixels', digest, referenceKey: String(ms) }, new Uint8Array(12))
    return scored[0]?.scores[0] ?? -1
  }
  const isShared = async (digest: string): Promise<boolean> => {
    const [first, second] = await Promise.all([who(digest, 300), who(digest, 300)])
    return first !== second
  }
  // nothing is known yet
  expect(await isShared('large')).toBe(true)
  const answeredBy: number[] = []
  let isOver = false
  const ask = async (): Promise<void> => {
    while (!isOver) {
      answeredBy.push(await who('small', 0.2))
      // what is done with an answer here
      const until = performance.now() + 1
      while (performance.now() < until);
    }
  }
  const asking = Array.from({ length: 8 }, ask)
  await expect.poll(() => answeredBy.length > 200 && new Set(answeredBy.slice(-100)).size, { timeout: 30_000 }).toBe(1)
  expect(await isShared('large')).toBe(true)
  isOver = true
  await Promise.all(asking)
  await paced.close()
})
