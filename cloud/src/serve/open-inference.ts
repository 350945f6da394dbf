/**
 * Open Inference Protocol v2 (KServe, "Predict Protocol - Version 2") with Triton's binary tensor extension, as pure
 * functions: what a request says, what an answer looks like. One input `pixels`, [count, height, width, channels]: UINT8,
 * which is compared with what the zone named by the parameter `reference` usually looks like, or FP32, as it goes into the
 * network. One output `scores`, FP32 [count, classes].
 */
import { Fault } from '@frameloop/kit/fault'
import type { Ms } from '@frameloop/kit/units'
import Type, { type Static, type TProperties } from 'typebox'
import { Compile } from 'typebox/compile'
import type { ModelMeta } from '../models/model-files.ts'

/** The header that says how much of a body is JSON; tensors follow it. */
export const jsonLengthHeader = 'inference-header-content-length'

export const [inputName, outputName] = ['pixels', 'scores']

const Parameters = <Known extends TProperties>(known: Known) => Type.Optional(Type.Object(known))
/** What is used of a request, as JSON Schema; clients send more, which is left alone. */
export const InferBody = Type.Object(
  {
    id: Type.Optional(Type.String()),
    inputs: Type.Array(
      Type.Object({
        name: Type.Literal(inputName),
        shape: Type.Array(Type.Integer({ minimum: 1 }), { minItems: 4, maxItems: 4, description: '[count, height, width, channels]' }),
        datatype: Type.Union([Type.Literal('UINT8'), Type.Literal('FP32')]),
        data: Type.Optional(Type.Array(Type.Any(), { description: 'numbers, in any nesting; absent when they follow as a binary tensor' })),
        parameters: Parameters({ binary_data_size: Type.Optional(Type.Integer({ minimum: 0 })) }),
      }),
      { minItems: 1, maxItems: 1 },
    ),
    outputs: Type.Optional(Type.Array(Type.Object({ name: Type.Literal(outputName), parameters: Parameters({ binary_data: Type.Optional(Type.Boolean()) }) }), { maxItems: 1 })),
    parameters: Parameters({
      binary_data_output: Type.Optional(Type.Boolean()),
      timeout: Type.Optional(Type.Integer({ minimum: 1, maximum: 60_000_000, description: 'how long it may wait for its turn, in microseconds; 504 beyond that' })),
      reference: Type.Optional(Type.String({ description: 'CAMERA ZONE: what it usually looks like there is what the pixels are compared with' })),
    }),
  },
  { description: `one input, ${inputName}` },
)
type InferBody = Static<typeof InferBody>
// asked for every tensor
const bodies = Compile(InferBody)

export interface InferRequest {
  readonly id: string
  readonly count: number
  /** UINT8, or FP32 little-endian. */
  readonly datatype: 'UINT8' | 'FP32'
  readonly bytes: Uint8Array
  /** `camera zone`; empty when none was named. */
  readonly reference: string
  readonly wantsBinary: boolean
  /** How long it may wait, where somebody said so. */
  readonly timeoutMs: Ms | undefined
}

/** A batch of pictures: count, height, width, channels. */
const mostNested = 4

const invalid = (sentence: string): Fault => new Fault('REQUEST_INVALID', sentence)

/** Numbers in any nesting up to that of the shape, in their order. */
function flatten(data: unknown, out: number[], depth = 0): number[] {
  if (Array.isArray(data) && depth < mostNested) for (const item of data) flatten(item, out, depth + 1)
  else if (typeof data === 'number') out.push(data)
  else throw invalid('data of an input must be numbers')
  return out
}

/** `jsonLength`: of the header; undefined when all of the body is JSON. Throws `REQUEST_INVALID`. */
export function readInferRequest(body: Buffer, jsonLength: number | undefined, { width, height, channels }: ModelMeta): InferRequest {
  if (jsonLength !== undefined && !(Number.isInteger(jsonLength) && jsonLength >= 0 && jsonLength <= body.length))
    throw invalid(`${jsonLengthHeader} must be a number of bytes of the body`)
  const wanted = `[count, ${height}, ${width}, ${channels}]`
  let json: unknown
  try {
    json = JSON.parse(body.toString('utf8', 0, jsonLength ?? body.length))
  } catch {
    throw invalid('The body is no JSON')
  }
  if (!bodies.Check(json)) {
    const [problem] = bodies.Errors(json)
    throw invalid(`${problem?.instancePath.slice(1) || 'The body'} ${problem?.message}; the model takes ${inputName}, UINT8 or FP32 of ${wanted}, and gives ${outputName}`)
  }
  const { id = '', inputs, outputs: [output] = [], parameters: { binary_data_output = false, reference = '', timeout } = {} } = json as InferBody
  const [input] = inputs as [InferBody['inputs'][number]]
  const { datatype, shape } = input
  const [count = 0, ...sides] = shape
  if (sides.join() !== [height, width, channels].join()) throw invalid(`The shape of ${inputName} must be ${wanted}`)
  const values = count * height * width * channels
  const size = values * (datatype === 'FP32' ? 4 : 1)
  const binarySize = input.parameters?.binary_data_size
  let bytes: Uint8Array
  if (binarySize === undefined) {
    const data = flatten(input.data ?? [], [])
    if (data.length !== values) throw invalid(`${inputName} of shape ${wanted} with count ${count} has ${values} values, ${data.length} came`)
    if (datatype === 'UINT8') {
      const wrong = data.find((value) => !Number.isInteger(value) || value < 0 || value > 255)
      if (wrong !== undefined) throw invalid(`UINT8 values are whole numbers from 0 to 255, ${wrong} is none`)
      bytes = Uint8Array.from(data)
    } else bytes = new Uint8Array(Float32Array.from(data).buffer)
  } else {
    const binary = body.subarray(jsonLength ?? body.length)
    if (binarySize !== size || binary.length !== size) throw invalid(`${inputName} has ${size} bytes; ${binarySize} were announced and ${binary.length} came`)
    bytes = binary
  }
  if (datatype === 'FP32' && !areFinite(bytes)) throw invalid('FP32 values are finite numbers of single precision, one is not')
  const wantsBinary = output?.parameters?.binary_data ?? binary_data_output
  return { id, count, datatype, bytes, reference, wantsBinary, timeoutMs: timeout === undefined ? undefined : timeout / 1000 }
}

/** FP32, little-endian: none of them has the largest exponent, which is that of infinities and NaN (IEEE 754, 3.4). */
function areFinite(bytes: Uint8Array): boolean {
  for (let at = 2; at < bytes.length; at += 4) if (((bytes[at + 1] as number) & 0x7f) === 0x7f && ((bytes[at] as number) & 0x80) !== 0) return false
  return true
}

export interface InferAnswer {
  readonly body: Buffer
  /** Of the JSON before the tensor, when there is one behind it. */
  readonly jsonLength: number | undefined
}

export function writeInferAnswer(
  { id, wantsBinary }: InferRequest,
  { name, version, digest, preprocessing }: { readonly name: string; readonly version: string; readonly digest: string; readonly preprocessing: string },
  scores: readonly (readonly number[])[],
): InferAnswer {
  const flat = Float32Array.from(scores.flat())
  const output = { name: outputName, datatype: 'FP32', shape: [scores.length, scores[0]?.length ?? 0] }
  const json = (more: object): Buffer =>
    Buffer.from(JSON.stringify({ model_name: name, model_version: version, ...(id ? { id } : {}), parameters: { digest, preprocessing }, outputs: [{ ...output, ...more }] }))
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
