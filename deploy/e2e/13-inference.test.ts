/** What other programs ask of inference: pictures, tensors by a client that was written for Triton, and rubbish. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import sharp from 'sharp'
import { afterAll, expect, test } from 'vitest'
import { root, tools } from '../src/home.ts'
import { one, pool, soon, state } from './session.ts'

afterAll(() => pool.end())

const serve = state.endpoints['serve'] ?? ''

interface Served {
  readonly task: string
  readonly version: string
  readonly engine: string
  readonly classes: readonly string[]
}

/** Whichever model serves first: the simulated street trains one by itself. */
const served = (): Promise<Served> =>
  soon(async () => {
    const { models } = (await (await fetch(`${serve}/v1/models`)).json()) as { models: readonly Served[] }
    return models[0]
  }, 180_000)

/** Pixels of the model's size, and a zone that it has learned about. */
async function aCrop(task: string): Promise<{ readonly camera: string; readonly zone: string; readonly pixels: Buffer; readonly width: number; readonly height: number }> {
  const found = await one<{ camera: string; zone: string }>('select camera_id as camera, zone from zones where task = $1 order by zone limit 1', [task])
  const { inputs } = (await (await fetch(`${serve}/v2/models/${task}`)).json()) as { inputs: { shape: number[] }[] }
  const [, height = 0, width = 0] = inputs[0]?.shape ?? []
  return { camera: '', zone: '', ...found, width, height, pixels: Buffer.from(new Uint8Array(width * height * 3).map((_, at) => (at * 37 + (at >> 6)) % 256)) }
}

const post = async (path: string, body: Uint8Array | string, headers: Record<string, string>): Promise<readonly [number, Record<string, unknown>]> => {
  const response = await fetch(`${serve}${path}`, { method: 'POST', headers, body: body as never })
  return [response.status, (await response.json()) as Record<string, unknown>]
}

test('the engine that serves is said, and both forms of the model were registered', async () => {
  expect(await served()).toMatchObject({ engine: 'onnxruntime', classes: expect.any(Array) as unknown })
})

test('a client that was written for Triton is answered, in bytes and in JSON alike', async () => {
  const { task, version, classes } = await served()
  const { pixels, camera, zone } = await aCrop(task)
  const program = spawn(join(tools, 'python-tests/bin/python'), [join(root, 'deploy/e2e/triton_client.py'), new URL(serve).host, task, `${camera} ${zone}`], {
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let [out, error] = ['', '']
  program.stdout.on('data', (chunk: Buffer) => {
    out += chunk.toString('utf8')
  })
  program.stderr.on('data', (chunk: Buffer) => {
    error += chunk.toString('utf8')
  })
  program.stdin.end(Buffer.concat([pixels, pixels]))
  await new Promise((resolve) => program.once('close', resolve))
  expect(error).toBe('')
  const said = JSON.parse(out) as Record<'binary' | 'json' | 'floats', { scores: number[][]; version: string; id: string }> & Record<string, unknown>
  expect(said).toMatchObject({ live: true, ready: true, modelReady: true, server: { name: 'frameloop', extensions: ['binary_tensor_data'] } })
  expect(said['metadata']).toMatchObject({ name: task, platform: 'onnxruntime_onnx', outputs: [{ name: 'scores', datatype: 'FP32', shape: [-1, classes.length] }] })
  for (const kind of ['binary', 'json', 'floats'] as const) {
    expect(said[kind]).toMatchObject({ version, id: 'one' })
    expect(said[kind].scores).toHaveLength(2)
    for (const row of said[kind].scores) expect(row.reduce((sum, score) => sum + score, 0)).toBeCloseTo(1, 4)
  }
  for (const [at, row] of said.binary.scores.entries()) for (const [index, score] of row.entries()) expect(said.json.scores[at]?.[index]).toBeCloseTo(score, 5)
  expect(said['refused']).toContain('No model no-such-model is served')
})

test('a picture of what is asked about gets the answer that its pixels get', async () => {
  const { task } = await served()
  const { width, height, pixels, camera, zone } = await aCrop(task)
  const png = await sharp(pixels, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer()
  const [status, answer] = await post(`/v1/models/${task}/predict?camera=${camera}&zone=${zone}`, png, { 'content-type': 'image/png' })
  expect(status).toBe(200)
  expect(answer).toMatchObject({ task, modelName: `frameloop-${task}`, traceId: expect.stringMatching(/^[0-9a-f]{32}$/) as unknown })
  const request = { inputs: [{ name: 'pixels', shape: [1, height, width, 3], datatype: 'UINT8', data: [...pixels] }], parameters: { reference: `${camera} ${zone}` } }
  const [, tensors] = await post(`/v2/models/${task}/infer`, JSON.stringify(request), { 'content-type': 'application/json' })
  const scores = (answer['scores'] as { score: number }[]).map(({ score }) => score)
  const [output] = tensors['outputs'] as { data: number[] }[]
  for (const [at, score] of scores.entries()) expect(output?.data[at]).toBeCloseTo(score, 5)
})

test.each<[string, (task: string) => string, string | Uint8Array, string, number, string]>([
  ['a model that is not there', () => '/v2/models/nothing/infer', '{}', 'application/json', 404, 'MODEL_UNKNOWN'],
  ['a task that has no model', () => '/v1/models/nothing/predict', 'x', 'image/jpeg', 503, 'MODEL_UNAVAILABLE'],
  ['another version', (task) => `/v2/models/${task}/versions/999/infer`, '{}', 'application/json', 404, 'MODEL_UNKNOWN'],
  ['a picture that is none', (task) => `/v1/models/${task}/predict`, 'no picture', 'image/jpeg', 422, 'PICTURE_UNREADABLE'],
  ['nothing', (task) => `/v1/models/${task}/predict`, '', 'image/jpeg', 400, 'REQUEST_INVALID'],
  ['a type that is no picture', (task) => `/v1/models/${task}/predict`, 'x', 'text/csv', 415, 'FST_ERR_CTP_INVALID_MEDIA_TYPE'],
  ['more than is taken', (task) => `/v1/models/${task}/predict`, new Uint8Array(20_000_001), 'image/jpeg', 413, 'FST_ERR_CTP_BODY_TOO_LARGE'],
  [
    'a tensor of another shape',
    (task) => `/v2/models/${task}/infer`,
    JSON.stringify({ inputs: [{ name: 'pixels', shape: [1, 2, 2, 3], datatype: 'UINT8', data: [] }] }),
    'application/json',
    400,
    'REQUEST_INVALID',
  ],
  ['JSON that is none', (task) => `/v2/models/${task}/infer`, '{', 'application/json', 400, 'REQUEST_INVALID'],
])('%s gets a problem document', async (_, pathOf, body, type, status, code) => {
  const { task } = await served()
  expect(await post(pathOf(task), body, { 'content-type': type })).toMatchObject([
    status,
    { status, code, hint: expect.any(String) as unknown, detail: expect.any(String) as unknown },
  ])
})
