import { expect, test } from 'vitest'
import type { ModelMeta } from '../models/model-files.ts'
import { readInferRequest, writeInferAnswer } from './open-inference.ts'

const meta = { width: 2, height: 1, channels: 3, classes: ['a', 'b'] } as unknown as ModelMeta
const input = (more: object): object => ({ name: 'pixels', shape: [1, 1, 2, 3], datatype: 'UINT8', ...more })
const jsonOf = (request: object): Buffer => Buffer.from(JSON.stringify(request))
const read = (request: object): ReturnType<typeof readInferRequest> => readInferRequest(jsonOf(request), undefined, meta)

test('a tensor comes as numbers in any nesting or as bytes behind the JSON, and means the same', () => {
  const asNumbers = read({
    id: 'one',
    inputs: [
      input({
        data: [
          [
            [
              [1, 2, 3],
              [4, 5, 6],
            ],
          ],
        ],
      }),
    ],
    parameters: { reference: 'c z' },
  })
  expect(asNumbers).toMatchObject({ id: 'one', count: 1, datatype: 'UINT8', reference: 'c z', wantsBinary: false })
  expect([...asNumbers.bytes]).toEqual([1, 2, 3, 4, 5, 6])
  const head = jsonOf({ inputs: [input({ parameters: { binary_data_size: 6 } })], outputs: [{ name: 'scores', parameters: { binary_data: true } }] })
  const asBytes = readInferRequest(Buffer.concat([head, Buffer.from([1, 2, 3, 4, 5, 6])]), head.length, meta)
  expect(asBytes.bytes).toEqual(Buffer.from(asNumbers.bytes))
  expect(asBytes.wantsBinary).toBe(true)
  expect(read({ inputs: [input({ data: [1, 2, 3, 4, 5, 6] })], parameters: { timeout: 250_000 } }).timeoutMs).toBe(250)
  const floats = read({ inputs: [input({ datatype: 'FP32', data: [0.5, 1, 2, 3, 4, 5] })] })
  expect(new Float32Array(floats.bytes.buffer)).toEqual(Float32Array.of(0.5, 1, 2, 3, 4, 5))
})

test('an answer is JSON, or JSON and the tensor behind it', () => {
  const model = { name: 't', version: '3', digest: 'd', preprocessing: 'p' }
  const plain = writeInferAnswer(read({ id: 'x', inputs: [input({ data: [1, 2, 3, 4, 5, 6] })] }), model, [[0.25, 0.75]])
  expect(plain.jsonLength).toBeUndefined()
  expect(JSON.parse(plain.body.toString())).toEqual({
    model_name: 't',
    model_version: '3',
    id: 'x',
    parameters: { digest: 'd', preprocessing: 'p' },
    outputs: [{ name: 'scores', datatype: 'FP32', shape: [1, 2], data: [0.25, 0.75] }],
  })
  const binary = writeInferAnswer(read({ inputs: [input({ data: [1, 2, 3, 4, 5, 6] })], parameters: { binary_data_output: true } }), model, [[0.25, 0.75]])
  expect(JSON.parse(binary.body.toString('utf8', 0, binary.jsonLength))).toMatchObject({ outputs: [{ parameters: { binary_data_size: 8 } }] })
  expect([binary.body.readFloatLE(binary.jsonLength ?? 0), binary.body.readFloatLE((binary.jsonLength ?? 0) + 4)]).toEqual([0.25, 0.75])
})

test.each<[string, object, string]>([
  ['no input', {}, 'must have required properties inputs; the model takes pixels, UINT8 or FP32 of [count, 1, 2, 3], and gives scores'],
  ['another name', { inputs: [input({ name: 'x' })] }, 'inputs/0/name must'],
  ['something else than a list', { inputs: [input({ data: [1, 2, 3, 4, 5, 6] })], outputs: {} }, 'outputs must be array'],
  ['nothing in a list', { inputs: [null] }, 'inputs/0 must be object'],
  ['another shape', { inputs: [input({ shape: [1, 2, 1, 3] })] }, 'The shape of pixels must be [count, 1, 2, 3]'],
  ['a type it does not take', { inputs: [input({ datatype: 'INT64' })] }, 'inputs/0/datatype must'],
  ['too few values', { inputs: [input({ data: [1] })] }, 'has 6 values, 1 came'],
  ['texts', { inputs: [input({ data: ['a'] })] }, 'data of an input must be numbers'],
  ['a fraction where bytes are wanted', { inputs: [input({ data: [0.5, 1, 2, 3, 4, 5] })] }, 'UINT8 values are whole numbers from 0 to 255, 0.5 is none'],
  ['more than a byte holds', { inputs: [input({ data: [300, 1, 2, 3, 4, 5] })] }, '300 is none'],
  ['a number beyond single precision', { inputs: [input({ datatype: 'FP32', data: [1e300, 1, 2, 3, 4, 5] })] }, 'one is not'],
  ['lists in lists without end', { inputs: [input({ data: JSON.parse(`${'['.repeat(1_000)}1${']'.repeat(1_000)}`) })] }, 'data of an input must be numbers'],
  ['bytes that did not come', { inputs: [input({ parameters: { binary_data_size: 6 } })] }, 'pixels has 6 bytes; 6 were announced and 0 came'],
  ['an output it does not have', { inputs: [input({ data: [1, 2, 3, 4, 5, 6] })], outputs: [{ name: 'y' }] }, 'outputs/0/name must'],
])('%s is said', (_, request, said) => {
  expect(() => read(request)).toThrow(said)
})

test.each([Number.NaN, -1, 1_000])('a length of %s for the JSON is refused', (length) => {
  expect(() => readInferRequest(jsonOf({ inputs: [] }), length, meta)).toThrow('inference-header-content-length')
})
