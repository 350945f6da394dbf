import type * as TF from '@tensorflow/tfjs-node'
import { InferenceSession, Tensor } from 'onnxruntime-node'
import { expect, test } from 'vitest'
import { buildNetwork } from './network.ts'
import { exportOnnx } from './onnx.ts'
import { onnxNames } from './onnx-names.ts'
import { differenceOf } from './predictor.ts'
import { tf } from './tensorflow.ts'

const { layers } = tf
type Build = (input: TF.SymbolicTensor) => TF.SymbolicTensor

/** Every weight a random number, also those that begin as zeros or ones; variances stay positive. */
function randomize(model: TF.LayersModel): TF.LayersModel {
  for (const layer of model.layers)
    layer.setWeights(
      layer
        .getWeights()
        .map((weight, at) =>
          layer.getClassName() === 'BatchNormalization' ? tf.randomUniform(weight.shape, 0.5, 1.5, 'float32', at) : tf.randomNormal(weight.shape, 0, 0.4, 'float32', at),
        ),
    )
  return model
}

/** The largest difference between what TF.js and ONNX Runtime answer to the same random input of two examples. */
async function enginesDiffer(model: TF.LayersModel): Promise<number> {
  const shape = [2, ...((model.inputs[0]?.shape ?? []) as number[]).slice(1)]
  const input = tf.randomNormal(shape, 0, 1, 'float32', 7)
  const wanted = (model.predict(input) as TF.Tensor).dataSync()
  const session = await InferenceSession.create(exportOnnx(model), { intraOpNumThreads: 1 })
  const got = (await session.run({ [onnxNames.input]: new Tensor('float32', input.dataSync() as Float32Array, shape) }))[onnxNames.output]
  await session.release()
  expect(got?.dims).toEqual([2, model.outputs[0]?.shape[1]])
  return differenceOf(wanted, (got?.data ?? []) as Float32Array)
}

const pictures = (build: Build): TF.LayersModel => {
  const input = tf.input({ shape: [13, 10, 3] })
  return randomize(tf.model({ inputs: input, outputs: build(input) }))
}
const apply = (layer: TF.layers.Layer, input: TF.SymbolicTensor | TF.SymbolicTensor[]): TF.SymbolicTensor => layer.apply(input) as TF.SymbolicTensor
const flat: Build = (input) => apply(layers.flatten(), input)
const chain =
  (...list: (() => TF.layers.Layer)[]): Build =>
  (input) =>
    list.reduce((value, make) => apply(make(), value), input)

const cases: Readonly<Record<string, Build>> = {
  'a convolution, the same size': chain(
    () => layers.conv2d({ filters: 5, kernelSize: 3, padding: 'same' }),
    () => layers.flatten(),
  ),
  'a convolution in strides of two, padded as TensorFlow pads': chain(
    () => layers.conv2d({ filters: 5, kernelSize: [3, 4], strides: 2, padding: 'same', activation: 'relu' }),
    () => layers.flatten(),
  ),
  'a convolution without padding and without bias': chain(
    () => layers.conv2d({ filters: 4, kernelSize: 3, useBias: false }),
    () => layers.flatten(),
  ),
  'a dilated convolution': chain(
    () => layers.conv2d({ filters: 4, kernelSize: 3, dilationRate: 2, padding: 'same' }),
    () => layers.flatten(),
  ),
  'a depthwise convolution with two kernels for each channel': chain(
    () => layers.depthwiseConv2d({ kernelSize: 3, depthMultiplier: 2, padding: 'same', activation: 'relu6' }),
    () => layers.flatten(),
  ),
  'batch normalisation, folded into the convolution before it': chain(
    () => layers.conv2d({ filters: 6, kernelSize: 3 }),
    () => layers.batchNormalization(),
    () => layers.flatten(),
  ),
  'batch normalisation, folded into a depthwise convolution': chain(
    () => layers.depthwiseConv2d({ kernelSize: 3 }),
    () => layers.batchNormalization({ scale: false }),
    () => layers.flatten(),
  ),
  'batch normalisation behind an activation': chain(
    () => layers.conv2d({ filters: 6, kernelSize: 3, activation: 'tanh' }),
    () => layers.batchNormalization({ center: false }),
    () => layers.flatten(),
  ),
  'batch normalisation of rows': chain(
    () => layers.flatten(),
    () => layers.dense({ units: 7 }),
    () => layers.batchNormalization(),
  ),
  'maximum and mean of windows': chain(
    () => layers.maxPooling2d({ poolSize: 2, padding: 'same' }),
    () => layers.averagePooling2d({ poolSize: 3, strides: 2, padding: 'same' }),
    () => layers.flatten(),
  ),
  'global maximum and mean, side by side': (input) => apply(layers.concatenate(), [apply(layers.globalMaxPooling2d({}), input), apply(layers.globalAveragePooling2d({}), input)]),
  'pictures side by side by channel, and their sum': (input) => {
    const [a, b] = [0, 1].map(() => apply(layers.conv2d({ filters: 4, kernelSize: 3 }), input)) as [TF.SymbolicTensor, TF.SymbolicTensor]
    return flat(apply(layers.concatenate(), [a, apply(layers.add(), [a, b])]))
  },
  'dense layers and softmax': chain(
    () => layers.flatten(),
    () => layers.dense({ units: 9, activation: 'sigmoid' }),
    () => layers.dropout({ rate: 0.5 }),
    () => layers.dense({ units: 4, activation: 'softmax' }),
  ),
  'softmax over channels': chain(
    () => layers.conv2d({ filters: 3, kernelSize: 1, activation: 'softmax' }),
    () => layers.flatten(),
  ),
  'activations as layers of their own': chain(
    () => layers.conv2d({ filters: 3, kernelSize: 3 }),
    () => layers.activation({ activation: 'elu' }),
    () => layers.reLU({ maxValue: 1 }),
    () => layers.flatten(),
    () => layers.softmax(),
  ),
}

test.each(Object.entries(cases))('%s: ONNX Runtime answers what TF.js answers', async (_, build) => {
  expect(await enginesDiffer(pictures(build))).toBeLessThan(1e-4)
})

test('the network that is trained here, in colour and in gray', async () => {
  for (const channels of [3, 1]) expect(await enginesDiffer(randomize(buildNetwork([64, 48, channels], 3, 5)))).toBeLessThan(1e-4)
})

test.each<[string, () => TF.layers.Layer, RegExp]>([
  ['a layer that is not among them', () => layers.upSampling2d({ size: [2, 2] }), /UpSampling2D\) is of a type that cannot be written as ONNX/],
  ['an activation that is not among them', () => layers.conv2d({ filters: 2, kernelSize: 1, activation: 'softsign' }), /has the activation softsign/],
  ['a dense layer over pictures', () => layers.dense({ units: 2 }), /is dense over pictures/],
])('%s is refused by name', (_, make, said) => {
  expect(() => exportOnnx(pictures(chain(make, () => layers.flatten())))).toThrow(said)
})

test('a layer that is used twice is refused', () => {
  const shared = layers.conv2d({ filters: 3, kernelSize: 3, padding: 'same' })
  expect(() => exportOnnx(pictures((input) => flat(apply(shared, apply(shared, input)))))).toThrow(/is used more than once/)
})
