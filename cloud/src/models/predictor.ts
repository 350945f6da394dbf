/**
 * A loaded model, whichever engine runs it: ONNX Runtime where it loads (half to a sixth of TF.js's CPU time, `docs/decisions/0014`), else TF.js
 * on TensorFlow, else TF.js in WebAssembly.
 * One that does not answer its probes as it did when it was registered does not load.
 */
import { Fault, rootMessage } from '@frameloop/kit/fault'
import { type Example, type ModelContent, type ModelFiles, type ModelMeta, openModelFiles } from './model-files.ts'
import { writeInput } from './model-input.ts'

export const engineNames = ['onnxruntime', 'tfjs', 'tfjs-wasm'] as const
export type EngineName = (typeof engineNames)[number]

/** What runs the network alone: float32 [count, height, width, channels] → logits, float32 [count, classes]. */
export interface Network {
  run(input: Float32Array, count: number): Promise<Float32Array>
  dispose(): void | Promise<void>
}

export interface Predictor {
  readonly meta: ModelMeta
  readonly digest: string
  readonly engine: EngineName
  /** Why it is not the first choice; empty when it is. */
  readonly why: string
  /**
   * Softmax scores per input, in the order of `meta.classes`. An input is the pixels of a zone, or what goes into the network
   * itself, float32 [height, width, channels]. Undefined for one whose scores are no numbers. One call after the other.
   */
  predict(inputs: readonly (Example | Float32Array)[]): Promise<(number[] | undefined)[]>
  dispose(): Promise<void>
}

/** How far an engine's logits may lie from those of another, of which a large one is known to fewer places. */
const parityLimit = 1e-4

/** The largest difference, as a share of what is large. */
export function differenceOf(wanted: ArrayLike<number>, found: ArrayLike<number>): number {
  return Math.max(...Array.from(wanted, (value, at) => Math.abs(value - (found[at] ?? Number.NaN)) / Math.max(1, Math.abs(value))))
}

type Opened = { readonly network: Network; readonly engine: EngineName; readonly why: string }

const openers: Readonly<Record<EngineName, (content: ModelContent) => Promise<Network>>> = {
  onnxruntime: async (content) => (await import('./onnx-network.ts')).openOnnxNetwork(content),
  tfjs: async (content) => (await import('./tfjs-network.ts')).openTfjsNetwork(content),
  'tfjs-wasm': async (content) => (await import('./tfjs-wasm-network.ts')).openTfjsWasmNetwork(content),
}

/** The first of the engines that loads. */
async function openNetwork(content: ModelContent, wanted: readonly EngineName[]): Promise<Opened> {
  const failures: string[] = []
  for (const engine of wanted) {
    try {
      return { network: await openers[engine](content), engine, why: failures.join('; ') }
    } catch (thrown) {
      failures.push(`${engine} does not load: ${rootMessage(thrown)}`)
    }
  }
  throw new Fault('MODEL_INVALID', `No engine runs the model: ${failures.join('; ')}`)
}

/** What is said of an answer that is none. */
export const notANumber = 'The model answered with something that is no number'
const areNumbers = (logits: Float32Array): boolean => logits.every(Number.isFinite)

export function softmax(logits: Float32Array): number[] {
  const most = Math.max(...logits)
  const powers = [...logits].map((value) => Math.exp(value - most))
  const sum = powers.reduce((total, value) => total + value, 0)
  return powers.map((value) => value / sum)
}

/** Throws `MODEL_INVALID` when the files are not those of `digest`, do not fit together, or answer otherwise than when they were registered. */
export async function openPredictor(files: ModelFiles, digest: string, wanted: readonly EngineName[] = engineNames): Promise<Predictor> {
  const content = openModelFiles(files, digest)
  const { meta, references, probes } = content
  const size = meta.width * meta.height * meta.channels
  const { network, engine, why } = await openNetwork(content, wanted)
  /** Where inputs are put together; as large as the largest batch so far. */
  let room = new Float32Array(size)
  const logitsOf = async (inputs: readonly (Example | Float32Array)[]): Promise<Float32Array[]> => {
    if (room.length < inputs.length * size) room = new Float32Array(inputs.length * size)
    const all = room.subarray(0, inputs.length * size)
    for (const [at, input] of inputs.entries()) {
      if (input instanceof Float32Array) all.set(input, at * size)
      else writeInput(all, at * size, input.pixels, references.get(input.referenceKey), meta)
    }
    const logits = await network.run(all, inputs.length)
    return inputs.map((_, at) => logits.subarray(at * meta.classes.length, (at + 1) * meta.classes.length))
  }
  // also its first run, which is the slow one and not a caller's
  const answered = probes.length > 0 ? await logitsOf(probes) : []
  for (const [at, { logits }] of probes.entries()) {
    const found = answered[at] ?? new Float32Array()
    const difference = differenceOf(logits, found)
    if (difference <= parityLimit) continue
    await network.dispose()
    if (!areNumbers(found)) throw new Fault('MODEL_INVALID', notANumber)
    throw new Fault('MODEL_INVALID', `With ${engine} the model answers its probe ${at + 1} otherwise than when it was registered, by ${difference}`, { engine })
  }
  return {
    ...{ meta, digest, engine, why },
    predict: async (inputs) => (await logitsOf(inputs)).map((logits) => (areNumbers(logits) ? softmax(logits) : undefined)),
    dispose: async () => network.dispose(),
  }
}
