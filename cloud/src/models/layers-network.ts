/** A layers model of TF.js, on whichever of its backends. A thread may have several of them, and uses one at a time: one call after the other. */
import * as core from '@tensorflow/tfjs-core'
import type { loadLayersModel } from '@tensorflow/tfjs-layers'
import type { ModelContent } from './model-files.ts'
import type { Network } from './predictor.ts'

/** Whoever else uses TF.js in this thread finds it as it was. */
async function on<Result>(backend: string, act: () => Result | Promise<Result>): Promise<Result> {
  const before = core.getBackend()
  if (before === backend) return act()
  await core.setBackend(backend)
  try {
    return await act()
  } finally {
    if (before) await core.setBackend(before)
  }
}

/** `backend`: by its name in TF.js. */
export async function openLayers(content: ModelContent, backend: string, load: typeof loadLayersModel): Promise<Network> {
  const { width, height, channels } = content.meta
  const { modelTopology, weightsManifest } = JSON.parse(content.file('model.json').toString('utf8')) as {
    modelTopology: object
    weightsManifest: { weights: core.io.WeightsManifestEntry[] }[]
  }
  const weights = content.file('weights.bin')
  const weightData = weights.buffer.slice(weights.byteOffset, weights.byteOffset + weights.length) as ArrayBuffer
  const artifacts = core.io.fromMemory({ modelTopology, weightSpecs: weightsManifest.flatMap((group) => group.weights), weightData })
  const model = await on(backend, () => load(artifacts))
  return {
    run: (input, count) => on(backend, () => core.tidy(() => (model.predict(core.tensor4d(input, [count, height, width, channels])) as core.Tensor).dataSync() as Float32Array)),
    dispose: () => void model.dispose(),
  }
}
