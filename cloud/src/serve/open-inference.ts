/**
 * Open Inference Protocol v2 (KServe, "Predict Protocol - Version 2") with Triton's binary tensor extension, as pure
 * functions: what a request says, what an answer looks like. One input `pixels`, [count, height, width, channels]: UINT8,
 * which is compared with what the zone named by the parameter `reference` usually looks like, or FP32, as it goes into the
 * network. One output `scores`, FP32 [count, classes].
 */
import { Fault } from '@frameloop/kit/fault'
import type { ModelMeta } from '../models/model-files.ts'

/** The header that says how much of a body is JSON; tensors follow it. */
export const jsonLengthHeader = 'inference-header-content-length'

export const [inputName, outputName] = ['pixels', 'scores']

interface Tensor {
  readonly name?: unknown
  readonly shape?: unknown
  readonly datatype?: unknown
  readonly data?: unknown
  readonly parameters?: { readonly binary_data_size?: unknown }
}

interface RequestBody {
  readonly id?: unknown
  readonly inputs?: readonly Tensor[]
  readonly outputs?: readonly { readonly name?: unknown; readonly parameters?: { readonly binary_data?: unknown } }[]
  readonly parameters?: { readonly binary_data_output?: unknown; readonly reference?: unknown }
}

export interface InferRequest {
  readonly id: string
  readonly count: number
  /** UINT8, or FP32 little-endian. */
  readonly datatype: 'UINT8' | 'FP32'
  readonly bytes: Uint8Array
  /** `camera zone`; empty when none was named. */
  readonly reference: string
  readonly wantsBinary: boolean
}

const invalid = (sentence: string): Fault => new Fault('REQUEST_INVALID', sentence)

/** Numbers in any nesting, in their order. */
function flatten(data: unknown, out: number[]): number[] {
  if (Array.isArray(data)) for (const item of data) flatten(item, out)
  else if (typeof data === 'number') out.push(data)
  else throw invalid('data of an input must be numbers')
  return out
}

/** `jsonLength`: of the header; undefined when all of the body is JSON. Throws `REQUEST_INVALID`. */
export function readInferRequest(body: Buffer, jsonLength: number | undefined, { width, height, channels }: ModelMeta): InferRequest {
  if (jsonLength !== undefined && !(Number.isInteger(jsonLength) && jsonLength >= 0 && jsonLength <= body.length))
    throw invalid(`${jsonLengthHeader} must be a number of bytes of the body`)
  let json: RequestBody
  try {
    json = JSON.parse(body.toString('utf8', 0, jsonLength ?? body.length)) as RequestBody
  } catch {
    throw invalid('The body is no JSON')
  }
  const [input, ...more] = Array.isArray(json?.inputs) ? json.inputs : []
  if (!input || more.length > 0 || input.name !== inputName) throw invalid(`The model has one input, ${inputName}`)
  const { datatype, shape } = input
  if (datatype !== 'UINT8' && datatype !== 'FP32') throw invalid(`${inputName} is UINT8 or FP32`)
  const wanted = `[count, ${height}, ${width}, ${channels}]`
  const [count, ...sides] = Array.isArray(shape) ? (shape as unknown[]) : []
  if (!Number.isInteger(count) || (count as number) < 1 || sides.join() !== [height, width, channels].join()) throw invalid(`The shape of ${inputName} must be ${wanted}`)
  const values = (count as number) * height * width * channels
  const size = values * (datatype === 'FP32' ? 4 : 1)
  const others = (json.outputs ?? []).filter(({ name }) => name !== outputName)
  if (others.length > 0) throw invalid(`The model has one output, ${outputName}`)
  const binarySize = input.parameters?.binary_data_size
  let bytes: Uint8Array
  if (binarySize === undefined) {
    const data = flatten(input.data ?? [], [])
    if (data.length !== values) throw invalid(`${inputName} of shape ${wanted} with count ${count as number} has ${values} values, ${data.length} came`)
    bytes = datatype === 'UINT8' ? Uint8Array.from(data) : new Uint8Array(Float32Array.from(data).buffer)
  } else {
    const binary = body.subarray(jsonLength ?? body.length)
    if (binarySize !== size || binary.length !== size) throw invalid(`${inputName} has ${size} bytes; ${binarySize as number} were announced and ${binary.length} came`)
    bytes = binary
  }
  const { reference = '', binary_data_output } = json.parameters ?? {}
  return {
    id: typeof json.id === 'string' ? json.id : '',
    count: count as number,
    ...{ datatype, bytes },
    reference: String(reference),
    wantsBinary: json.outputs?.[0]?.parameters?.binary_data === true || (json.outputs?.[0]?.parameters?.binary_data === undefined && binary_data_output === true),
  }
}

export interface InferAnswer {
  readonly body: Buffer
  /** Of the JSON before the tensor, when there is one behind it. */
  readonly jsonLength: number | undefined
}

export function writeInferAnswer(
  { id, wantsBinary }: InferRequest,
  model: { readonly name: string; readonly version: string },
  scores: readonly (readonly number[])[],
): InferAnswer {
  const flat = Float32Array.from(scores.flat())
  const output = { name: outputName, datatype: 'FP32', shape: [scores.length, scores[0]?.length ?? 0] }
  const json = (more: object): Buffer =>
    Buffer.from(JSON.stringify({ model_name: model.name, model_version: model.version, ...(id ? { id } : {}), outputs: [{ ...output, ...more }] }))
  if (!wantsBinary) return { body: json({ data: [...flat] }), jsonLength: undefined }
  const head = json({ parameters: { binary_data_size: flat.byteLength } })
  return { body: Buffer.concat([head, Buffer.from(flat.buffer)]), jsonLength: head.length }
}

export function modelMetadata(name: string, versions: readonly string[], engine: string, { width, height, channels, classes }: ModelMeta): object {
  return {
    ...{ name, versions, platform: engine === 'onnxruntime' ? 'onnxruntime_onnx' : 'tfjs_layers' },
    inputs: [{ name: inputName, datatype: 'UINT8', shape: [-1, height, width, channels] }],
    outputs: [{ name: outputName, datatype: 'FP32', shape: [-1, classes.length] }],
    parameters: { classes },
  }
}

export const serverMetadata = { name: 'frameloop', version: '0.1.0', extensions: ['binary_tensor_data'] } as const
