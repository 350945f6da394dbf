/** The network that is trained here. */
import type * as TF from '@tensorflow/tfjs-node'
import { tf } from './tensorflow.ts'

/** About 10,000 weights: three strided convolutions, global maximum and mean, one dense layer of logits. */
export function buildNetwork(shape: readonly [height: number, width: number, channels: number], classes: number, seed: number): TF.LayersModel {
  let next = seed * 1_000
  const input = tf.input({ shape: [...shape] })
  let layer: TF.SymbolicTensor = input
  for (const filters of [12, 24, 32]) {
    next += 1
    layer = tf.layers.conv2d({ filters, kernelSize: 3, strides: 2, padding: 'same', kernelInitializer: tf.initializers.heNormal({ seed: next }) }).apply(layer) as TF.SymbolicTensor
    layer = tf.layers.activation({ activation: 'relu' }).apply(layer) as TF.SymbolicTensor
  }
  const pooled = [tf.layers.globalMaxPooling2d({}).apply(layer), tf.layers.globalAveragePooling2d({}).apply(layer)] as TF.SymbolicTensor[]
  const output = tf.layers
    .dense({ units: classes, kernelInitializer: tf.initializers.glorotNormal({ seed: next + 1 }) })
    .apply(tf.layers.concatenate().apply(pooled)) as TF.SymbolicTensor
  return tf.model({ inputs: input, outputs: output })
}
