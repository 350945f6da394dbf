/** TF.js on the TensorFlow of this thread. */
import type { io } from '@tensorflow/tfjs-core'
import type * as TF from '@tensorflow/tfjs-node'
import type { ModelContent } from './model-files.ts'
import type { Network } from './predictor.ts'
import { tf } from './tensorflow.ts'

export async function openTfjsNetwork(content: ModelContent): Promise<Network> {
  const { width, height, channels } = content.meta
  const { modelTopology, weightsManifest } = JSON.parse(content.file('model.json').toString('utf8')) as {
    modelTopology: object
    weightsManifest: { weights: io.WeightsManifestEntry[] }[]
  }
  const weights = content.file('weights.bin')
  const weightData = weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length) as ArrayBuffer
  const model = await tf.loadLayersModel(tf.io.fromMemory({ modelTopology, weightSpecs: weightsManifest.flatMap((group) => group.weights), weightData }))
  return {
    run: async (input, count) => tf.tidy(() => (model.predict(tf.tensor4d(input, [count, height, width, channels])) as TF.Tensor).dataSync() as Float32Array),
    dispose: () => void model.dispose(),
  }
}
