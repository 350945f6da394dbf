/** ONNX Runtime on one thread: whoever wants more cores runs more of them, and none waits for another. */
import { InferenceSession, Tensor } from 'onnxruntime-node'
import type { ModelContent } from './model-files.ts'
import { onnxNames } from './onnx-names.ts'
import type { Network } from './predictor.ts'

export async function openOnnxNetwork(content: ModelContent): Promise<Network> {
  const { width, height, channels } = content.meta
  const session = await InferenceSession.create(content.file('model.onnx'), {
    intraOpNumThreads: 1,
    interOpNumThreads: 1,
    executionMode: 'sequential',
    graphOptimizationLevel: 'all',
  })
  return {
    async run(input, count) {
      const { [onnxNames.output]: output } = await session.run({ [onnxNames.input]: new Tensor('float32', input, [count, height, width, channels]) })
      return output?.data as Float32Array
    },
    dispose: () => session.release(),
  }
}
