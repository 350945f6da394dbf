/** The training loop, in a worker thread: TensorFlow blocks the thread that calls it. Fixed epochs, cosine rate, balanced draws. */

import { parentPort, workerData } from 'node:worker_threads'
import { Fault } from '@frameloop/kit/fault'
import { randomOf } from '@frameloop/kit/random'
import { channelsOf, type Preprocessing, preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { medianPicture } from '@frameloop/stream-processors/picture/median'
import type * as TF from '@tensorflow/tfjs-node'
import { bestOf, digestOf, type ModelFiles, metaOf } from '../models/model-files.ts'
import { referenceKey, writeInput } from '../models/model-input.ts'
import { buildNetwork } from '../models/network.ts'
import { engineNames, notANumber, openPredictor } from '../models/predictor.ts'
import { device, tf } from '../models/tensorflow.ts'
import { writeModel } from '../models/write-model.ts'
import type { Example } from './dataset.ts'
import { type Evaluation, evaluate, type Judged } from './evaluate.ts'

export interface FitJob {
  readonly task: string
  readonly examples: readonly Example[]
  readonly train: readonly number[]
  readonly heldOut: readonly number[]
  readonly classes: readonly string[]
  readonly preprocessing: Preprocessing
  readonly referencePictures: Readonly<Record<string, string>>
  readonly datasetDigest: string
  readonly cutAt: string
  readonly seed: number
  readonly epochs: number
  /** Files of the present champion, judged on the same held-out examples. */
  readonly champion?: { readonly files: ModelFiles; readonly digest: string }
}

export type FitMessage =
  | { readonly kind: 'epoch'; readonly epoch: number; readonly loss: number }
  | {
      readonly kind: 'done'
      readonly files: ModelFiles
      readonly digest: string
      readonly device: string
      readonly evaluation: Evaluation
      readonly championEvaluation?: Evaluation
    }

const probeCount = 8
export const hyperparameters = { batch: 32, rate: 0.003, epochs: 20, gain: 0.1, bias: 0.06 } as const

async function fit(job: FitJob, tell: (message: FitMessage) => void): Promise<void> {
  const random = randomOf(job.seed)
  const { width, height } = job.preprocessing
  const channels = channelsOf(job.preprocessing)
  const size = width * height * channels
  const crops = new Map<string, Uint8Array[]>()
  const groups = new Map<string, number[]>()
  for (const index of job.train) {
    const example = job.examples[index] as Example
    const key = referenceKey(example.cameraId, example.zone)
    crops.set(key, [...(crops.get(key) ?? []), example.pixels])
    const group = `${key} ${example.label}`
    groups.set(group, [...(groups.get(group) ?? []), index])
  }
  const references = new Map([...crops].map(([key, list]) => [key, medianPicture(list)]))
  const model = buildNetwork([height, width, channels], job.classes.length, job.seed)
  const { batch, rate, gain, bias } = hyperparameters
  const steps = Math.ceil(job.train.length / batch)
  const total = steps * job.epochs
  const optimizer = tf.train.adam(rate)
  const drawFrom = [...groups.keys()].sort().map((key) => groups.get(key) as number[])
  const jitter = (around: number): number => (random() * 2 - 1) * around
  let draw = 0
  for (let epoch = 1; epoch <= job.epochs; epoch += 1) {
    let loss = 0
    for (let step = 0; step < steps; step += 1) {
      const input = new Float32Array(batch * size)
      const labels = new Int32Array(batch)
      for (let at = 0; at < batch; at += 1, draw += 1) {
        const group = drawFrom[draw % drawFrom.length] as number[]
        const example = job.examples[group[Math.floor(random() * group.length)] as number] as Example
        writeInput(
          input,
          at * size,
          example.pixels,
          references.get(referenceKey(example.cameraId, example.zone)),
          { width, channels },
          {
            gain: 1 + jitter(gain),
            bias: jitter(bias),
            flip: random() < 0.5,
          },
        )
        labels[at] = job.classes.indexOf(example.label)
      }
      const done = (epoch - 1) * steps + step
      // warm up over the first epoch, then half a cosine (Loshchilov & Hutter, ICLR 2017)
      ;(optimizer as unknown as { learningRate: number }).learningRate = rate * Math.min(1, (done + 1) / steps) * (0.5 + 0.5 * Math.cos((Math.PI * done) / total))
      const cost = tf.tidy(() => {
        const x = tf.tensor4d(input, [batch, height, width, channels])
        const y = tf.oneHot(tf.tensor1d(labels, 'int32'), job.classes.length)
        return optimizer.minimize(() => tf.losses.softmaxCrossEntropy(y, model.apply(x, { training: true }) as TF.Tensor2D) as TF.Scalar, true) as TF.Scalar
      })
      loss += cost.dataSync()[0] ?? 0
      cost.dispose()
    }
    tell({ kind: 'epoch', epoch, loss: loss / steps })
  }
  const files = await writeModel(model, references, probesOf(job), {
    task: job.task,
    classes: job.classes,
    width,
    height,
    channels,
    preprocessing: preprocessingDigest(job.preprocessing),
    preprocessingParameters: job.preprocessing,
    referencePictures: job.referencePictures,
    seed: job.seed,
    datasetDigest: job.datasetDigest,
    cutAt: job.cutAt,
  })
  const digest = digestOf(files)
  // whatever engine will serve it answers the same, or it is not registered
  for (const engine of engineNames) await (await openPredictor(files, digest, [engine])).dispose()
  // judged as it will be served: read back from its files
  const evaluation = await judge(files, digest, job)
  // one of another preprocessing cannot be judged on these pixels; whatever else is wrong with it is for somebody to see, and no reason to replace it
  const isComparable = job.champion && metaOf(job.champion.files).preprocessing === preprocessingDigest(job.preprocessing)
  const championEvaluation = job.champion && isComparable ? await judge(job.champion.files, job.champion.digest, job) : undefined
  tell({ kind: 'done', files, digest, device, evaluation, ...(championEvaluation ? { championEvaluation } : {}) })
}

/** Some held-out examples, of all parts of the list; of the training ones where none is held out. */
function probesOf({ examples, train, heldOut }: FitJob): { readonly referenceKey: string; readonly pixels: Uint8Array }[] {
  const from = heldOut.length > 0 ? heldOut : train
  const count = Math.min(probeCount, from.length)
  return Array.from({ length: count }, (_, at) => {
    const { cameraId, zone, pixels } = examples[from[Math.floor((at * from.length) / count)] as number] as Example
    return { referenceKey: referenceKey(cameraId, zone), pixels }
  })
}

async function judge(files: ModelFiles, digest: string, job: FitJob): Promise<Evaluation> {
  const predictor = await openPredictor(new Map([...files].map(([name, bytes]) => [name, Buffer.from(bytes)])), digest)
  try {
    if (predictor.meta.preprocessing !== preprocessingDigest(job.preprocessing))
      throw new Fault('MODEL_INVALID', 'The model was trained on another preprocessing and cannot be judged on these pixels')
    const judged: Judged[] = []
    for (let from = 0; from < job.heldOut.length; from += 64) {
      const part = job.heldOut.slice(from, from + 64).map((index) => job.examples[index] as Example)
      const scores = await predictor.predict(part.map(({ cameraId, zone, pixels }) => ({ referenceKey: referenceKey(cameraId, zone), pixels })))
      for (const [at, { cameraId, zone, label }] of part.entries()) {
        const found = scores[at]
        if (!found) throw new Fault('MODEL_INVALID', notANumber)
        judged.push({ zone: `${cameraId} ${zone}`, truth: label, answer: bestOf(predictor.meta.classes, found).answer })
      }
    }
    return evaluate(judged)
  } finally {
    await predictor.dispose()
  }
}

if (parentPort) {
  const port = parentPort
  await tf.ready()
  await fit(workerData as FitJob, (message) => port.postMessage(message))
}
