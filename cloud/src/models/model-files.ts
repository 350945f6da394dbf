/** A model as files: what is stored in MLflow, checked by one digest, and read back by serving and by evaluation. */
import { createHash } from 'node:crypto'
import { Fault } from '@frameloop/kit/fault'
import type { io } from '@tensorflow/tfjs-core'
import type * as TF from '@tensorflow/tfjs-node'
import { buildNetwork, type References, writeInput } from './network.ts'
import { tf } from './tensorflow.ts'

/** `meta.json` of a model. */
export interface ModelMeta {
  readonly task: string
  readonly classes: readonly string[]
  readonly width: number
  readonly height: number
  /** 3, or 1 for luma. */
  readonly channels: number
  /** Digest of the preprocessing whose pixels it was trained on. */
  readonly preprocessing: string
  /** Per camera: sha256 of the reference picture its pixels were compared with, where they were. */
  readonly referencePictures: Readonly<Record<string, string>>
  readonly seed: number
  readonly datasetDigest: string
  /** `camera zone` in the order of the pictures in `references.bin`. */
  readonly references: readonly string[]
  /** No frame captured later is in its dataset, ISO time. */
  readonly cutAt: string
}

export type ModelFiles = ReadonlyMap<string, Buffer>

/** sha256 over names and contents, in name order. */
export function digestOf(files: ModelFiles): string {
  const hash = createHash('sha256')
  for (const name of [...files.keys()].filter((file) => file !== 'MLmodel').sort()) hash.update(`${name}\0${files.get(name)?.length}\0`).update(files.get(name) ?? '')
  return hash.digest('hex')
}

export async function writeModel(model: TF.LayersModel, references: References, meta: Omit<ModelMeta, 'references'>): Promise<ModelFiles> {
  let artifacts: io.ModelArtifacts | undefined
  await model.save(
    tf.io.withSaveHandler(async (saved) => {
      artifacts = saved
      return { modelArtifactsInfo: { dateSaved: new Date(0), modelTopologyType: 'JSON' } }
    }),
  )
  if (!artifacts?.weightData || !artifacts.weightSpecs) throw new Fault('RUN_FAILED', 'The model could not be written')
  const weights = Buffer.from(tf.io.concatenateArrayBuffers(Array.isArray(artifacts.weightData) ? artifacts.weightData : [artifacts.weightData]))
  const keys = [...references.keys()].sort()
  const topology = {
    format: 'layers-model',
    generatedBy: 'frameloop',
    convertedBy: null,
    modelTopology: artifacts.modelTopology,
    weightsManifest: [{ paths: ['weights.bin'], weights: artifacts.weightSpecs }],
  }
  return new Map([
    ['model.json', Buffer.from(JSON.stringify(topology))],
    ['weights.bin', weights],
    ['references.bin', Buffer.concat(keys.map((key) => references.get(key) ?? Buffer.alloc(0)))],
    ['meta.json', Buffer.from(JSON.stringify({ ...meta, references: keys }, null, 2))],
  ])
}

/** A model ready to answer. `dispose` lets its tensors go. */
export interface Predictor {
  readonly meta: ModelMeta
  readonly digest: string
  /** Softmax scores per example, in the order of `meta.classes`. */
  predict(examples: readonly { readonly referenceKey: string; readonly pixels: Uint8Array }[]): number[][]
  dispose(): void
}

/** Throws `MODEL_INVALID` when the files are not those of `digest` or do not fit together. */
export async function readModel(files: ModelFiles, digest: string): Promise<Predictor> {
  const found = digestOf(files)
  if (found !== digest) throw new Fault('MODEL_INVALID', `The model's files hash to ${found.slice(0, 12)}…, ${digest.slice(0, 12)}… was promoted`)
  const need = (name: string): Buffer => {
    const file = files.get(name)
    if (!file) throw new Fault('MODEL_INVALID', `The model has no file ${name}`)
    return file
  }
  // models of before these parameters existed
  const meta = { channels: 3, referencePictures: {}, ...JSON.parse(need('meta.json').toString('utf8')) } as ModelMeta
  const topology = JSON.parse(need('model.json').toString('utf8')) as { weightsManifest: { weights: io.WeightsManifestEntry[] }[] }
  const weights = need('weights.bin')
  const specs = topology.weightsManifest.flatMap((group) => group.weights)
  const tensors = tf.io.decodeWeights(weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length) as ArrayBuffer, specs)
  const model = buildNetwork([meta.height, meta.width, meta.channels], meta.classes.length, meta.seed)
  model.setWeights(specs.map(({ name }) => tensors[name] as TF.Tensor))
  for (const tensor of Object.values(tensors)) tensor.dispose()
  const size = meta.width * meta.height * meta.channels
  const pictures = need('references.bin')
  const references = new Map(meta.references.map((key, at) => [key, new Uint8Array(pictures.subarray(at * size, (at + 1) * size))]))
  return {
    meta,
    digest,
    predict(examples) {
      const input = new Float32Array(examples.length * size)
      for (const [at, { referenceKey, pixels }] of examples.entries()) writeInput(input, at * size, pixels, references.get(referenceKey), meta)
      const scores = tf.tidy(
        () => tf.softmax(model.predict(tf.tensor4d(input, [examples.length, meta.height, meta.width, meta.channels])) as TF.Tensor2D).arraySync() as number[][],
      )
      if (scores.some((row) => row.some((score) => !Number.isFinite(score)))) throw new Fault('MODEL_INVALID', 'The model answered with something that is no number')
      return scores
    },
    dispose: () => model.dispose(),
  }
}
