/**
 * A TF.js layers model as ONNX (onnx.ai, IR 8, opset 17), for engines that are quicker than TensorFlow on a CPU.
 * Pictures stay [height, width, channels] outside, as everywhere here; inside they are [channels, height, width], which is
 * how ONNX convolves. Batch normalisation is folded into the convolution before it. A layer that is not among those below
 * is refused by name: a model that is almost the same is worse than none.
 */
import { Fault } from '@frameloop/kit/fault'
import type * as TF from '@tensorflow/tfjs-node'
import { onnxNames } from './onnx-names.ts'
import { bytes, float, int, message, packedInts, text } from './protobuf.ts'

const [irVersion, opset] = [8, 17]
/** onnx.proto3: `TensorProto.DataType`. */
const dataType = { float: 1, int64: 7 } as const
/** onnx.proto3: `AttributeProto.AttributeType`. */
const attributeType = { float: 1, int: 2, string: 3, ints: 7 } as const

type Attribute = number | string | readonly number[] | { readonly float: number }

function attribute(name: string, value: Attribute): Buffer {
  if (typeof value === 'number') return message(5, text(1, name), int(3, value), int(20, attributeType.int))
  if (typeof value === 'string') return message(5, text(1, name), text(4, value), int(20, attributeType.string))
  if ('float' in value) return message(5, text(1, name), float(2, value.float), int(20, attributeType.float))
  return message(5, text(1, name), packedInts(8, value), int(20, attributeType.ints))
}

/** `batch` first, then what is known. */
function valueInfo(field: number, name: string, sides: readonly number[]): Buffer {
  const dimensions = [message(1, text(2, 'batch')), ...sides.map((side) => message(1, int(1, side)))]
  return message(field, text(1, name), message(2, message(1, int(1, dataType.float), message(2, ...dimensions))))
}

/** What a value of the graph holds: pictures [batch, channels, height, width], or rows [batch, values]. */
interface Value {
  readonly name: string
  readonly isPicture: boolean
}

interface Weights {
  readonly values: Float32Array
  readonly shape: readonly number[]
}

/** The graph as it is written. */
class Graph {
  readonly nodes: Buffer[] = []
  readonly constants: Buffer[] = []
  #count = 0

  node(operator: string, inputs: readonly string[], attributes: Readonly<Record<string, Attribute>> = {}, output = `v${++this.#count}`): string {
    const parts = [...inputs.map((input) => text(1, input)), text(2, output), text(3, `${operator}_${output}`), text(4, operator)]
    this.nodes.push(message(1, ...parts, ...Object.entries(attributes).map(([name, value]) => attribute(name, value))))
    return output
  }

  constant({ values, shape }: Weights): string {
    const name = `c${++this.#count}`
    // raw data is little-endian, as every machine here is
    const raw = Buffer.from(values.buffer, values.byteOffset, values.byteLength)
    this.constants.push(message(5, packedInts(1, shape), int(2, dataType.float), text(8, name), bytes(9, raw)))
    return name
  }
}

/** Values moved so that axis `at` of the result is axis `order[at]` of what is given. */
export function transpose({ values, shape }: Weights, order: readonly number[]): Weights {
  const to = order.map((axis) => shape[axis] as number)
  const strides = shape.map((_, axis) => shape.slice(axis + 1).reduce((product, side) => product * side, 1))
  const moved = new Float32Array(values.length)
  const index = to.map(() => 0)
  for (let at = 0; at < moved.length; at += 1) {
    moved[at] = values[index.reduce((sum, place, axis) => sum + place * (strides[order[axis] as number] as number), 0)] as number
    for (let axis = to.length - 1; axis >= 0; axis -= 1) {
      index[axis] = (index[axis] as number) + 1
      if ((index[axis] as number) < (to[axis] as number)) break
      index[axis] = 0
    }
  }
  return { values: moved, shape: to }
}

/** A kernel whose first axis is the output channel, and its bias. */
interface Kernel {
  readonly weights: Weights
  readonly bias: Float32Array
}

/** Batch normalisation of what a kernel gives, as another kernel: y = gamma (x - mean) / sqrt(variance + epsilon) + beta. */
function folded({ weights, bias }: Kernel, { scale, shift }: { readonly scale: Float32Array; readonly shift: Float32Array }): Kernel {
  const perChannel = weights.values.length / bias.length
  return {
    weights: { shape: weights.shape, values: weights.values.map((value, at) => value * (scale[Math.floor(at / perChannel)] as number)) },
    bias: bias.map((value, channel) => value * (scale[channel] as number) + (shift[channel] as number)),
  }
}

type Config = Readonly<Record<string, unknown>>

const sides = (value: unknown): [number, number] => (Array.isArray(value) ? [Number(value[0]), Number(value[1])] : [Number(value), Number(value)])

/** What TensorFlow pads on each side for `same`: so much that the output is the input's size over the stride, the odd one at the end. */
function padsOf(config: Config, shape: readonly (number | null)[], kernel: readonly number[], dilations: readonly number[] = [1, 1]): { readonly pads: readonly number[] } {
  if (config['padding'] !== 'same') return { pads: [0, 0, 0, 0] }
  const strides = sides(config['strides'])
  const total = [0, 1].map((axis) => {
    const [size, stride, reach] = [shape[axis + 1] ?? 0, strides[axis] as number, ((kernel[axis] as number) - 1) * (dilations[axis] as number) + 1]
    return Math.max(0, (Math.ceil(size / stride) - 1) * stride + reach - size)
  })
  return { pads: [...total.map((sum) => Math.floor(sum / 2)), ...total.map((sum) => Math.ceil(sum / 2))] }
}

function refuse(layer: TF.layers.Layer, why = 'is of a type that cannot be written as ONNX'): never {
  throw new Fault('MODEL_INVALID', `Layer ${layer.name} (${layer.getClassName()}) ${why}`)
}

class Exporter {
  readonly graph = new Graph()
  readonly #values = new Map<string, Value>()
  readonly #layers: readonly TF.layers.Layer[]
  /** Normalisations that are part of the kernel before them. */
  readonly #absorbed = new Set<TF.layers.Layer>()

  constructor(layers: readonly TF.layers.Layer[]) {
    this.#layers = layers
  }

  valueOf(tensor: TF.SymbolicTensor): Value {
    const value = this.#values.get(tensor.name)
    if (!value) throw new Fault('MODEL_INVALID', `The value ${tensor.name} of the model comes from nowhere`)
    return value
  }

  /** `layer` with `inputs` → its value. */
  add(layer: TF.layers.Layer): void {
    const [node, ...more] = layer.inboundNodes
    if (!node || more.length > 0) refuse(layer, 'is used more than once in the model, which cannot be written as ONNX')
    const [output] = node.outputTensors
    if (!output) refuse(layer)
    const value =
      layer.getClassName() === 'InputLayer'
        ? this.#input(output)
        : this.#apply(
            layer,
            node.inputTensors.map((tensor) => this.valueOf(tensor)),
            node.inputTensors,
          )
    this.#values.set(output.name, value)
  }

  #input({ shape }: TF.SymbolicTensor): Value {
    const isPicture = shape.length === 4
    return isPicture ? { name: this.graph.node('Transpose', [onnxNames.input], { perm: [0, 3, 1, 2] }), isPicture } : { name: onnxNames.input, isPicture }
  }

  #apply(layer: TF.layers.Layer, inputs: readonly Value[], tensors: readonly TF.SymbolicTensor[]): Value {
    const config = layer.getConfig() as Config
    const [input] = inputs
    if (!input) return refuse(layer)
    const { name, isPicture } = input
    const like = (output: string): Value => ({ name: output, isPicture })
    switch (layer.getClassName()) {
      case 'Conv2D':
      case 'DepthwiseConv2D':
        return this.#activated(layer, this.#convolution(layer, config, name, tensors[0]?.shape ?? []))
      case 'Dense':
        if (isPicture) return refuse(layer, 'is dense over pictures, which cannot be written as ONNX')
        return this.#activated(layer, this.#dense(layer, name))
      case 'BatchNormalization':
        return this.#absorbed.has(layer) ? input : like(this.#normalisation(layer, name, isPicture))
      case 'Activation':
        return like(this.#activation(layer, String(config['activation']), name, isPicture))
      case 'ReLU':
        return like(config['maxValue'] == null ? this.graph.node('Relu', [name]) : this.#clipped(name, Number(config['maxValue'])))
      case 'Softmax':
        return like(this.#activation(layer, 'softmax', name, isPicture))
      case 'MaxPooling2D':
      case 'AveragePooling2D': {
        const window = sides(config['poolSize'])
        const attributes = { kernel_shape: window, strides: sides(config['strides']), ...padsOf(config, tensors[0]?.shape ?? [], window) }
        // a mean is over what is there, also where it was padded: that is what ONNX does unless told otherwise
        return like(this.graph.node(layer.getClassName() === 'MaxPooling2D' ? 'MaxPool' : 'AveragePool', [name], attributes))
      }
      case 'GlobalMaxPooling2D':
      case 'GlobalAveragePooling2D': {
        const pooled = this.graph.node(layer.getClassName() === 'GlobalMaxPooling2D' ? 'GlobalMaxPool' : 'GlobalAveragePool', [name])
        return { name: this.graph.node('Flatten', [pooled], { axis: 1 }), isPicture: false }
      }
      case 'Flatten':
        // rows are numbered as TF.js numbers them: channels last
        return { name: this.graph.node('Flatten', [isPicture ? this.graph.node('Transpose', [name], { perm: [0, 2, 3, 1] }) : name], { axis: 1 }), isPicture: false }
      case 'Concatenate': {
        const [rank, axis] = [tensors[0]?.shape.length ?? 0, Number(config['axis'])]
        if (axis !== -1 && axis !== rank - 1) return refuse(layer, 'joins along another axis than the last, which cannot be written as ONNX')
        return like(
          this.graph.node(
            'Concat',
            inputs.map((value) => value.name),
            { axis: 1 },
          ),
        )
      }
      case 'Add':
        return like(inputs.slice(1).reduce((sum, value) => this.graph.node('Add', [sum, value.name]), name))
      case 'Dropout':
      case 'SpatialDropout2D':
        return input
      default:
        return refuse(layer)
    }
  }

  #weights(layer: TF.layers.Layer): Weights[] {
    return layer.getWeights().map((tensor) => ({ values: tensor.dataSync() as Float32Array, shape: tensor.shape }))
  }

  #convolution(layer: TF.layers.Layer, config: Config, input: string, shape: readonly (number | null)[]): Value {
    if (config['dataFormat'] === 'channelsFirst') return refuse(layer, 'has its channels first, which is not written as ONNX')
    const [given, givenBias] = this.#weights(layer)
    if (!given) return refuse(layer)
    const isDepthwise = layer.getClassName() === 'DepthwiseConv2D'
    const [height = 0, width = 0, channels = 0, out = 0] = given.shape
    // depthwise: [height, width, channels, multiplier] → [channels * multiplier, 1, height, width]
    const moved = transpose(given, isDepthwise ? [2, 3, 0, 1] : [3, 2, 0, 1])
    const outputs = isDepthwise ? channels * out : out
    const weights = isDepthwise ? { values: moved.values, shape: [outputs, 1, height, width] } : moved
    const kernel = this.#normalised(layer, { weights, bias: givenBias?.values ?? new Float32Array(outputs) })
    const dilations = sides(config['dilationRate'] ?? 1)
    const group = isDepthwise ? channels : 1
    const attributes = { kernel_shape: [height, width], strides: sides(config['strides']), dilations, group, ...padsOf(config, shape, [height, width], dilations) }
    const constants = [this.graph.constant(kernel.weights), this.graph.constant({ values: kernel.bias, shape: [outputs] })]
    return { name: this.graph.node('Conv', [input, ...constants], attributes), isPicture: true }
  }

  #dense(layer: TF.layers.Layer, input: string): Value {
    const [given, givenBias] = this.#weights(layer)
    if (!given) return refuse(layer)
    const [, outputs = 0] = given.shape
    const kernel = this.#normalised(layer, { weights: transpose(given, [1, 0]), bias: givenBias?.values ?? new Float32Array(outputs) })
    const constants = [this.graph.constant(kernel.weights), this.graph.constant({ values: kernel.bias, shape: [outputs] })]
    return { name: this.graph.node('Gemm', [input, ...constants], { transB: 1 }), isPicture: false }
  }

  /** The kernel with the normalisation that follows it, when nothing else sees what comes between. */
  #normalised(layer: TF.layers.Layer, kernel: Kernel): Kernel {
    const [output] = layer.inboundNodes[0]?.outputTensors ?? []
    const readers = this.#layers.filter((other) => other.inboundNodes.some((node) => node.inputTensors.some((tensor) => tensor.name === output?.name)))
    const [next] = readers
    const isPlain = ((layer.getConfig() as Config)['activation'] ?? 'linear') === 'linear'
    if (!next || readers.length > 1 || !isPlain || next.getClassName() !== 'BatchNormalization') return kernel
    this.#absorbed.add(next)
    return folded(kernel, this.#scaleAndShift(next))
  }

  #scaleAndShift(layer: TF.layers.Layer): { readonly scale: Float32Array; readonly shift: Float32Array } {
    const config = layer.getConfig() as Config
    const weights = this.#weights(layer).map(({ values }) => values)
    const size = weights.at(-1)?.length ?? 0
    const gamma = config['scale'] === false ? new Float32Array(size).fill(1) : (weights.shift() as Float32Array)
    const beta = config['center'] === false ? new Float32Array(size) : (weights.shift() as Float32Array)
    const [mean, variance] = weights as [Float32Array, Float32Array]
    const scale = gamma.map((value, at) => value / Math.sqrt((variance[at] as number) + Number(config['epsilon'])))
    return { scale, shift: beta.map((value, at) => value - (mean[at] as number) * (scale[at] as number)) }
  }

  #normalisation(layer: TF.layers.Layer, input: string, isPicture: boolean): string {
    const { scale, shift } = this.#scaleAndShift(layer)
    const shape = isPicture ? [1, scale.length, 1, 1] : [1, scale.length]
    const scaled = this.graph.node('Mul', [input, this.graph.constant({ values: scale, shape })])
    return this.graph.node('Add', [scaled, this.graph.constant({ values: shift, shape })])
  }

  #activated(layer: TF.layers.Layer, { name, isPicture }: Value): Value {
    return { name: this.#activation(layer, String((layer.getConfig() as Config)['activation'] ?? 'linear'), name, isPicture), isPicture }
  }

  #activation(layer: TF.layers.Layer, kind: string, input: string, isPicture: boolean): string {
    switch (kind) {
      case 'linear':
        return input
      case 'relu':
        return this.graph.node('Relu', [input])
      case 'relu6':
        return this.#clipped(input, 6)
      case 'sigmoid':
        return this.graph.node('Sigmoid', [input])
      case 'tanh':
        return this.graph.node('Tanh', [input])
      case 'elu':
        return this.graph.node('Elu', [input], { alpha: { float: 1 } })
      case 'softmax':
        return this.graph.node('Softmax', [input], { axis: isPicture ? 1 : -1 })
      default:
        return refuse(layer, `has the activation ${kind}, which cannot be written as ONNX`)
    }
  }

  #clipped(input: string, most: number): string {
    const bounds = [0, most].map((value) => this.graph.constant({ values: Float32Array.of(value), shape: [] }))
    return this.graph.node('Clip', [input, ...bounds])
  }
}

/** The model as the bytes of an ONNX file. Throws `MODEL_INVALID` for what cannot be written. */
export function exportOnnx(model: TF.LayersModel): Buffer {
  const [input, output] = [model.inputs[0], model.outputs[0]]
  if (!input || !output || model.inputs.length !== 1 || model.outputs.length !== 1)
    throw new Fault('MODEL_INVALID', 'Only a model with one input and one output is written as ONNX')
  const exporter = new Exporter(model.layers)
  for (const layer of model.layers) exporter.add(layer)
  const { name, isPicture } = exporter.valueOf(output)
  if (isPicture) throw new Fault('MODEL_INVALID', 'Only a model whose output are rows is written as ONNX')
  const { graph } = exporter
  graph.node('Identity', [name], {}, onnxNames.output)
  const known = (shape: readonly (number | null)[]): number[] => shape.slice(1).map((side) => side ?? 0)
  const body = [...graph.nodes, text(2, 'frameloop'), ...graph.constants, valueInfo(11, onnxNames.input, known(input.shape)), valueInfo(12, onnxNames.output, known(output.shape))]
  return Buffer.concat([int(1, irVersion), text(2, 'frameloop'), message(7, ...body), message(8, text(1, ''), int(2, opset))])
}
