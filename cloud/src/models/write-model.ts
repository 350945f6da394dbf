/** A trained network as files, in both forms. */
import { Fault } from '@frameloop/kit/fault'
import type { io } from '@tensorflow/tfjs-core'
import type * as TF from '@tensorflow/tfjs-node'
import type { Example, ModelFiles, ModelMeta } from './model-files.ts'
import { type References, writeInput } from './model-input.ts'
import { exportOnnx } from './onnx.ts'
import { tf } from './tensorflow.ts'

/** `examples`: some that the network has not learned from; they go along with what it answers to them. Throws `MODEL_INVALID` for a network that has no ONNX form. */
export async function writeModel(model: TF.LayersModel, references: References, examples: readonly Example[], meta: Omit<ModelMeta, 'references' | 'probes'>): Promise<ModelFiles> {
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
  const probes = examples.map(({ referenceKey, pixels }) => {
    const input = new Float32Array(pixels.length)
    writeInput(input, 0, pixels, references.get(referenceKey), meta)
    return { referenceKey, logits: [...tf.tidy(() => (model.predict(tf.tensor4d(input, [1, meta.height, meta.width, meta.channels])) as TF.Tensor).dataSync())] }
  })
  return new Map([
    ['model.json', Buffer.from(JSON.stringify(topology))],
    ['weights.bin', weights],
    ['model.onnx', exportOnnx(model)],
    ['references.bin', Buffer.concat(keys.map((key) => references.get(key) ?? Buffer.alloc(0)))],
    ['probes.bin', Buffer.concat(examples.map(({ pixels }) => pixels))],
    ['meta.json', Buffer.from(JSON.stringify({ ...meta, references: keys, probes }, null, 2))],
  ])
}
