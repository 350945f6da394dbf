/** TF.js on the TensorFlow of this thread. */
import { openLayers } from './layers-network.ts'
import type { ModelContent } from './model-files.ts'
import type { Network } from './predictor.ts'
import { tf } from './tensorflow.ts'

export function openTfjsNetwork(content: ModelContent): Promise<Network> {
  return openLayers(content, 'tensorflow', tf.loadLayersModel)
}
