/** What other programs ask of inference: pictures, tensors by a client that was written for Triton, and rubbish. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { type IncomingMessage, request } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { connectTo, type FeedMessage, type FeedWish, type LivePrediction } from '@frameloop/client'
import { openMlflow } from '@frameloop/cloud/models/mlflow'
import { type Example, modelFileNames } from '@frameloop/cloud/models/model-files'
import { placeOf } from '@frameloop/cloud/models/model-slots'
import { differenceOf, engineNames, openPredictor } from '@frameloop/cloud/models/predictor'
import { objectStoreOf } from '@frameloop/kit/object-store'
import type { FeaturesPrepared } from '@frameloop/schemas/events'
import { chromium } from 'playwright-core'
import sharp from 'sharp'
import { afterAll, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { build, root, tools } from '../src/home.ts'
import type { ListedModel } from '../src/models.ts'
import { freePort } from './network-camera.ts'
import { env, frameloop, home, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

afterAll(() => pool.end())

const serve = state.endpoints['serve'] ?? ''
const client = connectTo({ url: serve, WebSocket })

interface Served {
  readonly task: string
  readonly alias: string
  readonly version: string
  readonly engine: string
  readonly classes: readonly string[]
}

/** The champion of the simulated street, which trains one by itself and goes on for as long as the stack does. */
const served = (): Promise<Served> =>
  soon(async () => {
    const { models } = (await (await fetch(`${serve}/v1/models`)).json()) as { models: readonly Served[] }
    return models.find(({ task, alias }) => task === 'occupancy' && alias === 'champion')
  })

/** Pixels of the model's size, and a zone that it has learned about. */
async function aCrop(task: string): Promise<{ readonly camera: string; readonly zone: string; readonly pixels: Buffer; readonly width: number; readonly height: number }> {
  const found = await one<{ camera: string; zone: string }>('select camera_id as camera, zone from zones where task = $1 order by zone limit 1', [task])
  const { inputs } = (await (await fetch(`${serve}/v2/models/${task}`)).json()) as { inputs: { shape: number[] }[] }
  const [, height = 0, width = 0] = inputs[0]?.shape ?? []
  return { camera: '', zone: '', ...found, width, height, pixels: Buffer.from(new Uint8Array(width * height * 3).map((_, at) => (at * 37 + (at >> 6)) % 256)) }
}

/** Such a crop, and a picture of it. */
async function aJpeg(task: string): Promise<Awaited<ReturnType<typeof aCrop>> & { readonly jpeg: Buffer<ArrayBuffer> }> {
  const crop = await aCrop(task)
  const { width, height, pixels } = crop
  return {
    ...crop,
    jpeg: await sharp(pixels, { raw: { width, height, channels: 3 } })
      .jpeg()
      .toBuffer(),
  }
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
  ['a task that is not there', () => '/v1/models/nothing/predict', 'x', 'image/jpeg', 404, 'TASK_UNKNOWN'],
  ['another version', (task) => `/v2/models/${task}/versions/999/infer`, '{}', 'application/json', 404, 'MODEL_UNKNOWN'],
  ['a picture that is none', (task) => `/v1/models/${task}/predict`, 'no picture', 'image/jpeg', 422, 'PICTURE_UNREADABLE'],
  ['nothing', (task) => `/v1/models/${task}/predict`, '', 'image/jpeg', 400, 'REQUEST_INVALID'],
  ['a type that is no picture', (task) => `/v1/models/${task}/predict`, 'x', 'text/csv', 415, 'FST_ERR_CTP_INVALID_MEDIA_TYPE'],
  ['JSON where a picture belongs', (task) => `/v1/models/${task}/predict`, '{}', 'application/json', 415, 'FST_ERR_CTP_INVALID_MEDIA_TYPE'],
  ['text', (task) => `/v1/models/${task}/predict`, 'x', 'text/plain', 415, 'FST_ERR_CTP_INVALID_MEDIA_TYPE'],
  ['a version that is not loaded', (task) => `/v1/models/${task}/predict?version=999`, 'x', 'image/jpeg', 404, 'MODEL_UNKNOWN'],
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

test('a task whose first model is still to come is not ready, and is none for clients of the protocol', async () => {
  await frameloop('tasks', 'set', 'still-to-come', '--size', '32x32')
  await soon(async () => ((await post('/v1/models/still-to-come/predict', 'x', { 'content-type': 'image/jpeg' }))[0] === 503 ? true : undefined))
  expect(await post('/v2/models/still-to-come/infer', '{}', { 'content-type': 'application/json' })).toMatchObject([404, { code: 'MODEL_UNKNOWN' }])
})

test('a frame of the catalog is answered by its id, and several pictures at once, each with its own outcome', async () => {
  const { task } = await served()
  const frame = await soon(async () =>
    one<{ frame_id: string }>("select frame_id from predictions where task = $1 and frame_id in (select frame_id from frames where object_key <> '') limit 1", [task]),
  )
  const unknown = '00000000-0000-4000-8000-000000000000'
  const [status, found] = await post('/v1/predict', JSON.stringify({ frameIds: [frame.frame_id, unknown], task }), { 'content-type': 'application/json' })
  expect([status, found]).toMatchObject([
    200,
    {
      answers: [
        { frameId: frame.frame_id, answers: expect.arrayContaining([expect.objectContaining({ task, answer: expect.any(String) as unknown })]) as unknown },
        { code: 'FRAME_UNKNOWN' },
      ],
    },
  ])
  expect(await post('/v1/predict', JSON.stringify({ frameIds: ['x'] }), { 'content-type': 'application/json' })).toMatchObject([400, { code: 'REQUEST_INVALID' }])
  const { width, height, pixels } = await aCrop(task)
  const png = await sharp(pixels, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer()
  const form = new FormData()
  for (const [name, bytes] of [
    ['good.png', png],
    ['bad.jpg', Buffer.from('no picture')],
  ] as const)
    form.append('pictures', new Blob([new Uint8Array(bytes)]), name)
  const several = await fetch(`${serve}/v1/models/${task}/predict`, { method: 'POST', body: form })
  expect(await several.json()).toMatchObject({ answers: [{ task, answer: expect.any(String) as unknown }, { code: 'PICTURE_UNREADABLE' }] })
})

test("SageMaker's contract: a ping, and invocations of the model that is named", async () => {
  const { task } = await served()
  expect((await fetch(`${serve}/ping`)).status).toBe(200)
  const { width, height, pixels } = await aCrop(task)
  const png = await sharp(pixels, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer()
  expect(await post('/invocations', png, { 'content-type': 'image/png', 'x-amzn-sagemaker-target-model': task })).toMatchObject([
    200,
    { task, answer: expect.any(String) as unknown },
  ])
})

test('a stream of pictures is answered in order, rubbish in its place', async () => {
  const { task, version } = await served()
  const { jpeg } = await aJpeg(task)
  const stream = client.stream(task)
  const order: number[] = []
  // more than may be on their way at once
  const answers = await Promise.allSettled(Array.from({ length: 200 }, (_, id) => stream.ask(id === 7 ? Buffer.from('rubbish') : jpeg).finally(() => order.push(id))))
  stream.close()
  expect(order).toEqual(Array.from({ length: 200 }, (_, id) => id))
  for (const [id, answer] of answers.entries())
    expect(answer).toMatchObject(id === 7 ? { status: 'rejected', reason: { code: 'PICTURE_UNREADABLE' } } : { status: 'fulfilled', value: { task, modelVersion: version } })
})

test('an answer to a picture that was sent along is followed to its model, run and data by its trace id', async () => {
  const { task, version } = await served()
  const { jpeg, width, height, pixels } = await aJpeg(task)
  const stream = client.stream(task)
  const [asked, streamed] = await Promise.all([client.classify(jpeg, { task }), stream.ask(jpeg)])
  stream.close()
  const infer = await fetch(`${serve}/v2/models/${task}/infer`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ inputs: [{ name: 'pixels', shape: [1, height, width, 3], datatype: 'UINT8', data: [...pixels] }] }),
  })
  expect(infer.status).toBe(200)
  const traceIds = [asked.traceId, streamed.traceId, infer.headers.get('x-trace-id') ?? '']
  expect(new Set(traceIds).size).toBe(3)
  for (const traceId of traceIds)
    expect(await frameloop('follow', traceId)).toMatch(
      new RegExp(`version ${version}: MLflow run [0-9a-f]{32}, dataset [0-9a-f]{64}, digest [0-9a-f]{64}\n.*\nserved as   champion since `),
    )
  await expect(frameloop('follow', 'f'.repeat(32))).rejects.toThrow(/is no trace id of an answer to a picture that was sent along/)
})

/** Messages of a feed until there are enough. */
async function hear(wish: FeedWish, isEnough: (heard: readonly FeedMessage[]) => boolean, by = client): Promise<FeedMessage[]> {
  const heard: FeedMessage[] = []
  for await (const message of by.feed(wish)) if (heard.push(message) && isEnough(heard)) break
  return heard
}
const predictionsIn = (heard: readonly FeedMessage[]): LivePrediction[] => heard.filter((message) => message.kind === 'prediction')

test('a feed sends pictures on wish, and tells each hop its time', async () => {
  const { task } = await served()
  const heard = await hear({ tasks: [task], pictures: 'jpeg' }, (so) => predictionsIn(so).length > 3 && so.some(({ kind }) => kind === 'picture'))
  const picture = heard.find((message) => message.kind === 'picture')
  expect(picture).toMatchObject({ contentType: 'image/jpeg' })
  expect(Buffer.from(picture?.bytes.subarray(0, 3) ?? []).toString('hex')).toBe('ffd8ff')
  const [first] = predictionsIn(heard)
  const times = ['capturedAt', 'arrivedAt', 'validatedAt', 'extractedAt', 'preparedAt', 'answeredAt'].map((name) => Number((first as object as Record<string, unknown>)[name]))
  for (const [at, time] of times.entries()) expect(time).toBeGreaterThanOrEqual((times[at - 1] ?? 1) - 50)
  const metrics = await (await fetch(`${serve}/metrics`)).text()
  expect(Number(/frameloop_glass_to_answer_seconds_count\{[^}]*hop="all"[^}]*\} (\d+)/.exec(metrics)?.[1])).toBeGreaterThan(0)
})

test('a feed that comes back goes on where it was', async () => {
  const { task } = await served()
  const partitionOf = ({ resume }: LivePrediction): string => resume.split(':')[0] ?? ''
  // until one partition has said two things, in this order
  const pairIn = (heard: readonly FeedMessage[]): readonly [LivePrediction, LivePrediction] | undefined => {
    const said = predictionsIn(heard)
    for (const [at, one] of said.entries()) {
      const after = said.slice(at + 1).find((other) => partitionOf(other) === partitionOf(one))
      if (after) return [one, after]
    }
    return undefined
  }
  const [before, wanted] = pairIn(await hear({ tasks: [task] }, (so) => pairIn(so) !== undefined)) ?? []
  const socket = new WebSocket(`${serve.replace('http', 'ws')}/v1/feeds`)
  const again: string[] = []
  socket.on('message', (data: Buffer) => again.push((JSON.parse(data.toString('utf8')) as LivePrediction).resume))
  socket.on('open', () => socket.send(JSON.stringify({ tasks: [task], resume: [before?.resume] })))
  await soon(async () => again.includes(wanted?.resume ?? '') || undefined)
  socket.close()
  expect(again).not.toContain(before?.resume)
})

test('files that MLflow does not have are missing, and MLflow is not away', async () => {
  const artifacts = `mlflow-artifacts:/1/${'a'.repeat(32)}/artifacts`
  await expect(openMlflow(env('MLFLOW_TRACKING_URI')).getFiles(artifacts, 'model', ['model.onnx'])).rejects.toMatchObject({ code: 'NOT_FOUND' })
})

test('every engine answers the zones of real frames alike', async () => {
  const task = 'pedestrians'
  const champion = await soon(() =>
    one<{ digest: string; artifact_path: string; preprocessing: string }>(
      "select m.digest, m.artifact_path, m.preprocessing from roles_now r join model_versions m on m.task = r.task and m.version = r.version where r.task = $1 and r.alias = 'champion'",
      [task],
    ),
  )
  const files = await openMlflow(env('MLFLOW_TRACKING_URI')).getFiles(champion.artifact_path, 'model', modelFileNames)
  const { rows } = await pool.query<{ camera_id: string; bucket: string; object_key: string; zones: FeaturesPrepared['zones'] }>(
    "select camera_id, bucket, object_key, zones from features where preprocessing = $1 and camera_id = 'vtest' order by frame_id limit 60",
    [champion.preprocessing],
  )
  const store = objectStoreOf(state.environment)
  const examples: Example[] = []
  for (const { camera_id: camera, bucket, object_key: key, zones } of rows) {
    const packed = await store.get(bucket, key)
    for (const { zone, tasks, offset, shape } of zones)
      if (tasks.includes(task)) examples.push({ referenceKey: `${camera} ${zone}`, pixels: packed.subarray(offset, offset + shape.reduce((product, side) => product * side, 1)) })
  }
  store.close()
  expect(examples.length).toBeGreaterThan(100)
  // one after the other: both of TF.js share what computes
  const answered: number[][][] = []
  for (const engine of engineNames) {
    const predictor = await openPredictor(files, champion.digest, [engine])
    const scores = await predictor.predict(examples)
    await predictor.dispose()
    answered.push(scores.filter((one) => one !== undefined))
  }
  for (const scores of answered) expect(scores).toHaveLength(examples.length)
  const [first = [], ...others] = answered
  // they were given something to tell apart
  expect(new Set(first.map((scores) => scores.indexOf(Math.max(...scores)))).size).toBeGreaterThan(1)
  for (const scores of others) for (const [at, one] of first.entries()) expect(differenceOf(one, scores[at] ?? [])).toBeLessThan(1e-4)
})

test('a challenger answers its share of the live frames in the place of the champion, a shadow on record only', async () => {
  const { task } = await served()
  // another version is wanted, not a better one: some minutes of the street are learned quickly
  await frameloop('train', task, '--seed', '2', '--from', new Date(Date.now() - 300_000).toISOString(), '--wait')
  const versions = async () => (JSON.parse(await frameloop('models', 'list', '--json')) as ListedModel[]).filter((model) => model.task === task)
  const champion = (await versions()).find(({ alias }) => alias.includes('champion'))?.version ?? ''
  const other = (await versions()).findLast(({ version }) => version !== champion)?.version ?? ''
  // what its training may have begun: the champion before it answers in its shadow
  await frameloop('models', 'retire', task, 'shadow')
  expect(await frameloop('models', 'challenge', task, other, '--share', '0.3')).toContain(`version ${other} of ${task} answers 30 % of the live frames`)
  const heard = predictionsIn(
    await hear({ tasks: [task] }, (so) => {
      const said = predictionsIn(so)
      const first = said.findIndex(({ modelVersion }) => modelVersion === other)
      return first >= 0 && said.slice(first).filter(({ modelVersion }) => modelVersion === champion).length >= 20
    }),
  )
  const since = heard.findIndex(({ modelVersion }) => modelVersion === other)
  for (const { frameId, modelVersion } of heard.slice(since)) expect(modelVersion, frameId).toBe(placeOf(frameId) < 0.3 ? other : champion)

  // whoever asks for it by name is answered by it
  const { jpeg } = await aJpeg(task)
  for (const [path, version] of [
    ['', champion],
    ['?version=challenger', other],
    [`?version=${champion}`, champion],
  ] as const)
    expect(await post(`/v1/models/${task}/predict${path}`, jpeg, { 'content-type': 'image/jpeg' }), path).toMatchObject([200, { modelVersion: version }])
  expect(await client.classify(jpeg, { task, version: other })).toMatchObject({ modelVersion: other })
  expect((await fetch(`${serve}/v2/models/${task}/versions/${other}/ready`)).status).toBe(200)

  await frameloop('models', 'retire', task, 'challenger')
  await frameloop('models', 'shadow', task, other)
  const recorded = await soon(async () =>
    one<{ frame_id: string; camera_id: string }>("select frame_id, camera_id from predictions where task = $1 and alias = 'shadow' and model_version = $2 limit 1", [task, other]),
  )
  const later = predictionsIn(await hear({ tasks: [task] }, (so) => predictionsIn(so).length >= 20))
  expect(new Set(later.map(({ modelVersion }) => modelVersion))).toEqual(new Set([champion]))
  // MLflow is told by and by, of those whose part has ended too
  const aliases = async (): Promise<Readonly<Record<string, string>>> => {
    const answer = await fetch(`${env('MLFLOW_TRACKING_URI')}/api/2.0/mlflow/registered-models/get?name=frameloop-${task}`)
    const { registered_model: model } = (await answer.json()) as { registered_model: { aliases?: readonly { alias: string; version: string }[] } }
    return Object.fromEntries((model.aliases ?? []).map(({ alias, version }) => [alias, version]))
  }
  const told = await soon(async () => {
    const found = await aliases()
    return found['shadow'] === other && found['challenger'] === undefined ? found : undefined
  })
  expect(told['champion']).toBe(champion)
  expect(await frameloop('follow', recorded.frame_id)).toMatch(
    new RegExp(`version ${champion}, champion\n.*version ${other}, shadow|version ${other}, shadow\n.*version ${champion}, champion`),
  )
  const exported = async (...more: string[]): Promise<number> =>
    (await frameloop('predictions', 'export', '--camera', recorded.camera_id, '--task', task, ...more))
      .split('\n')
      .filter((line) => line.startsWith(recorded.frame_id) && line.endsWith(',shadow')).length
  expect([await exported(), (await exported('--shadow')) > 0]).toEqual([0, true])
  await frameloop('models', 'retire', task, 'shadow')
  await expect(frameloop('models', 'challenge', task, other, '--share', '2')).rejects.toThrow('A share lies between 0 and 1, 2 does not')
})

test('a plain page shows live answers with their pictures, and a page of another address gets none', async () => {
  await served()
  const browser = await chromium.launch({ executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium', args: ['--no-sandbox'] })
  try {
    const page = await browser.newPage()
    const errors: string[] = []
    page.on('pageerror', (error) => errors.push(error.message))
    await page.goto(`${state.console}/example.html`)
    await page.waitForFunction("[...document.querySelectorAll('li')].some((line) => line.querySelector('img').naturalWidth > 0 && / %$/.test(line.innerText))", undefined, {
      timeout: 60_000,
    })
    expect(await page.locator('#state').innerText()).toBe('live')
    expect(errors).toEqual([])
    // the API's description is a page too
    await page.goto(`${serve}/docs`)
    await page.waitForSelector('[data-path="/v1/models/{task}/predict"]', { timeout: 30_000 })
    // a page of anywhere, looked at on this machine: nobody here has allowed it
    await page.goto(state.health['labels'] ?? '')
    const outcome = await page.evaluate(`new Promise((resolve) => {
      const socket = new WebSocket('${serve.replace('http', 'ws')}/v1/feeds')
      socket.onopen = () => resolve('open')
      socket.onerror = () => resolve('refused')
    })`)
    expect(outcome).toBe('refused')
  } finally {
    await browser.close()
  }
  expect(await post('/v1/predict?camera=x', 'x', { 'content-type': 'image/jpeg', origin: 'https://elsewhere.example' })).toMatchObject([403, { code: 'ORIGIN_NOT_ALLOWED' }])
})

test.each([
  ['a request', 'POST /v1/predict HTTP/1.1\r\nhost: x\r\n', 'x-a: b\r\n'],
  ['a picture', 'POST /v1/models/occupancy/predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/jpeg\r\ncontent-length: 100000\r\n\r\n', 'x'],
])('who sends %s letter by letter is closed within ten seconds', async (_, begin, letter) => {
  const { hostname, port } = new URL(serve)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  const began = Date.now()
  socket.write(begin)
  const drip = setInterval(() => socket.writable && socket.write(letter), 500)
  await new Promise((resolve) => socket.once('close', resolve))
  clearInterval(drip)
  expect(Date.now() - began).toBeLessThan(10_500)
})

test('who sends more than there is room for is told when to come again, and is answered then', async () => {
  const { task } = await served()
  const { jpeg } = await aJpeg(task)
  const address = `${serve}/v1/models/${task}/predict`
  const asking = Array.from({ length: 15 }, () => {
    const one = request(address, { method: 'POST', headers: { 'content-type': 'image/jpeg', 'content-length': 20_000_000 } })
    one.on('error', () => {})
    one.write(Buffer.alloc(19_000_000))
    return one
  })
  const refused = await Promise.race(asking.map(async (one) => ((await once(one, 'response')) as [IncomingMessage])[0]))
  expect(refused).toMatchObject({ statusCode: 429, headers: { 'retry-after': '1' } })
  expect(JSON.parse(await text(refused))).toMatchObject({ code: 'OVERLOADED', detail: expect.stringContaining('are coming already') as unknown })
  for (const one of asking) one.destroy()
  await soon(async () => ((await post(`/v1/models/${task}/predict`, jpeg, { 'content-type': 'image/jpeg' }))[0] === 200 ? true : undefined))
})

test('where keys are asked for nobody gets in without one, a key reaches what it names, and a ticket holds once', async () => {
  const { task } = await served()
  const [, key = ''] = /(fl_\S+)/.exec(await frameloop('keys', 'add', 'test', '--verbs', 'feeds,models', '--tasks', task)) ?? []
  expect(await frameloop('keys', 'list')).toContain(`all cameras; tasks ${task}`)
  const port = await freePort()
  const guarded = `http://127.0.0.1:${port}`
  // another replica of the same server, opened to others
  const child = spawn(process.execPath, [join(build, 'serve.mjs')], {
    env: { ...process.env, ...state.environment, API_KEYS: 'required', INSTANCE: 'guarded', PORT: String(port), MODEL_CACHE_FOLDER: join(home, 'models') },
    stdio: 'ignore',
  })
  try {
    await soon(
      async () =>
        (await fetch(`${guarded}/readyz`).then(
          ({ ok }) => ok,
          () => false,
        )) || undefined,
      120_000,
    )
    const ask = (path: string, method = 'GET', headers: Record<string, string> = { authorization: `Bearer ${key}` }) =>
      fetch(`${guarded}${path}`, { method, headers }).then(async (response) => [response.status, (await response.json()) as Record<string, unknown>] as const)
    expect(await ask('/v1/models', 'GET', {})).toMatchObject([401, { code: 'UNAUTHORIZED' }])
    expect(await ask('/v1/models', 'GET', { authorization: `Bearer ${key.slice(0, -2)}xx` })).toMatchObject([401, { code: 'UNAUTHORIZED' }])
    expect(await ask('/v1/models')).toMatchObject([200, { models: expect.arrayContaining([expect.objectContaining({ task })]) as unknown }])
    expect(await ask('/v1/predict?camera=any', 'POST', { authorization: `Bearer ${key}`, 'content-type': 'image/jpeg' })).toMatchObject([403, { code: 'NOT_ALLOWED' }])
    const [, { ticket }] = await ask('/v1/tickets', 'POST')
    const open = (query: string): Promise<boolean> =>
      new Promise((resolve) => {
        const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/feeds${query}`)
        socket.on('open', () => {
          socket.close()
          resolve(true)
        })
        socket.on('error', () => resolve(false))
      })
    expect([await open(''), await open(`?ticket=${String(ticket)}`), await open(`?ticket=${String(ticket)}`)]).toEqual([false, true, false])
    // the client of programs and pages gets its tickets itself
    const heard = await hear({}, (so) => predictionsIn(so).length > 0, connectTo({ url: guarded, key, WebSocket }))
    expect(predictionsIn(heard)[0]).toMatchObject({ task })
    await expect(hear({}, () => true, connectTo({ url: guarded, key: `${key.slice(0, -2)}xx`, WebSocket }))).rejects.toMatchObject({ code: 'UNAUTHORIZED' })
    await frameloop('keys', 'revoke', key.split('_')[1] ?? '')
    await soon(async () => ((await ask('/v1/models'))[0] === 401 ? true : undefined))
  } finally {
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGTERM')
    await ended
  }
})

test('whatever the description of the API allows and forbids, nothing fails inside', async () => {
  await served()
  const checks = 'not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance'
  const program = spawn(join(tools, 'python-tests/bin/schemathesis'), ['run', `${serve}/openapi.json`, '--checks', checks, '--max-examples', '30', '--seed', '6', '--no-color'], {
    cwd: home,
  })
  let out = ''
  for (const stream of [program.stdout, program.stderr])
    stream.on('data', (chunk: Buffer) => {
      out += chunk.toString('utf8')
    })
  const code = await new Promise((resolve) => program.once('close', resolve))
  expect(code, out.slice(-6_000)).toBe(0)
})
