/**
 * The network and what goes into it, declared once for training and serving.
 * A model judges how a zone differs from what it usually looks like: 4 * |pixel - reference| with the median of the
 * training crops as reference (chosen by measurement, `docs/decisions/0003`).
 */
import type * as TF from '@tensorflow/tfjs-node'
import { tf } from './tensorflow.ts'

/** Per `camera zone`: Uint8Array [height, width, channels], the median of the training crops. */
export type References = ReadonlyMap<string, Uint8Array>

export function referenceKey(cameraId: string, zone: string): string {
  return `${cameraId} ${zone}`
}

const contrast = 4

export interface Augmentation {
  readonly gain: number
  readonly bias: number
  readonly flip: boolean
}

const plain: Augmentation = { gain: 1, bias: 0, flip: false }

/** Writes one example, Float32 [height, width, channels], at `offset` of `out`. A zone without a reference is compared with black. */
export function writeInput(
  out: Float32Array,
  offset: number,
  crop: Uint8Array,
  reference: Uint8Array | undefined,
  { width, channels }: { readonly width: number; readonly channels: number },
  augmentation: Augmentation = plain,
): void {
  const { gain, bias, flip } = augmentation
  const line = width * channels
  for (let at = 0; at < crop.length; at += 1) {
    const value = ((crop[at] as number) / 255 - 0.5) * gain + 0.5 + bias
    const difference = contrast * Math.abs(value - (reference ? (reference[at] as number) / 255 : 0))
    if (!flip) out[offset + at] = difference
    else {
      const inLine = at % line
      const channel = inLine % channels
      out[offset + at - inLine + (line - channels - (inLine - channel)) + channel] = difference
    }
  }
}

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
