/** Predictions over HTTP: a camera's whole picture or one of the catalog, a picture of what is asked about, tensors by the Open Inference Protocol. */

import multipart from '@fastify/multipart'
import type { Answer, FrameAnswers, PictureAnswer, Problem } from '@frameloop/client'
import { Fault, rootMessage } from '@frameloop/kit/fault'
import { problemOf } from '@frameloop/kit/http'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { namePattern } from '@frameloop/schemas/ids'
import { answerTraceId } from '@frameloop/schemas/trace'
import { referencesOf } from '@frameloop/stream-processors/features/features'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import type { ZoneDirectory } from '@frameloop/stream-processors/features/zones'
import { errorCodes, type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import Type, { type Static } from 'typebox'
import Value from 'typebox/value'
import { bestOf } from '../models/model-files.ts'
import { referenceKey } from '../models/model-input.ts'
import type { ModelSlots, Slot } from '../models/model-slots.ts'
import { allow, type Caller, within } from './access.ts'
import * as Answers from './answers.ts'
import { answered, oneOrEach, pictureBodies } from './answers.ts'
import { type Engine, type Pieces, usualDeadline } from './engine.ts'
import { gathering, isGathered } from './gather.ts'
import { isPreparedFor } from './live.ts'
import { InferBody, inputName, jsonLengthHeader, modelMetadata, outputName, readInferRequest, serverMetadata, writeInferAnswer } from './open-inference.ts'

export interface PredictionTools {
  readonly engine: Engine
  readonly slots: ModelSlots
  readonly zones: ZoneDirectory
  readonly store: ObjectStore
  readonly pool: Pick<Pool, 'query'>
}

/** A version that is loaded, by its number or its alias; the champion when none is named. Throws `MODEL_UNKNOWN`, and as `championOf`. */
function servingOf(tools: Pick<PredictionTools, 'slots' | 'zones'>, task: string, version: string | undefined): Slot {
  if (version === undefined) return championOf(tools, task)
  const slot = tools.slots.all.find(({ change }) => change.task === task && (change.version === version || change.alias === version))
  if (!slot) throw new Fault('MODEL_UNKNOWN', `No model ${task} of version ${version} is served`, { task, version })
  return slot
}

/** The champion of a task. Throws `TASK_UNKNOWN`, and `MODEL_UNAVAILABLE` of a task whose first model is still to come. */
export function championOf({ slots, zones }: Pick<PredictionTools, 'slots' | 'zones'>, task: string): Slot {
  const slot = slots.of(task)
  if (slot) return slot
  if (!zones.loaded) throw new Fault('DATABASE_UNAVAILABLE', 'The tasks have not been read yet', { task })
  if (!zones.hasTask(task)) throw new Fault('TASK_UNKNOWN', `There is no task ${task}`, { task })
  throw new Fault('MODEL_UNAVAILABLE', `No model serves task ${task} yet`, { task })
}

/** Of an answer to what was sent along: `frameloop follow` reads the model out of it. */
function traceOf({ change }: Slot): string {
  return answerTraceId(change.digest, Date.now())
}

/** What every answer says: the class, how sure, and which model says so. */
function answerOf({ change, model }: Slot, scores: readonly number[]): Answer {
  const { classes } = model.meta
  return {
    ...{ ...bestOf(classes, scores), scores: classes.map((name, at) => ({ class: name, score: scores[at] ?? 0 })) },
    ...{ modelName: change.modelName, modelVersion: change.version, modelDigest: change.digest, preprocessing: change.preprocessing },
  }
}

/** The same about a picture that was sent along, which can be followed by its trace id alone. */
export function pictureAnswerOf(slot: Slot, scores: readonly number[]): Answer & { readonly traceId: string } {
  return { traceId: traceOf(slot), ...answerOf(slot, scores) }
}

const Name = Type.String({ pattern: namePattern })

/** Before a body is read from somebody who may not ask at all. */
const mayPredict = { onRequest: async ({ caller }: FastifyRequest) => allow(caller, 'predict') }
const Frames = Type.Object(
  { frameIds: Type.Array(Type.String({ format: 'uuid' }), { minItems: 1, maxItems: 64 }), task: Type.Optional(Name) },
  { additionalProperties: false, description: 'frames that are in the catalog' },
)

/** What one of several pictures came to. */
const orProblem = <Answered>(answering: Promise<Answered>): Promise<Answered | Problem> => answering.catch((thrown: unknown) => problemOf(thrown).document)

/** Answers the picture in the body, or each of those in a multipart body. */
async function eachPicture(request: FastifyRequest, answer: (bytes: Pieces) => Promise<object>): Promise<object> {
  if (!request.isMultipart()) {
    const { body } = request
    const type = request.headers['content-type'] ?? ''
    if (type.startsWith('application/json')) throw new errorCodes.FST_ERR_CTP_INVALID_MEDIA_TYPE(type)
    if (!isGathered(body) || body.length === 0)
      throw new Fault('REQUEST_INVALID', 'Send the picture itself as the body, with its content type (image/jpeg, image/png, image/webp), or several as multipart/form-data')
    return answer(body)
  }
  const answering: Promise<object>[] = []
  try {
    for await (const part of request.files()) {
      // the first one is the request itself
      if (answering.length > 0) request.caller.take()
      answering.push(orProblem(answer(await part.toBuffer())))
    }
  } catch (thrown) {
    // what the parser says of a form that breaks off or has no boundary carries no status
    if (thrown instanceof Fault || (thrown as { statusCode?: number }).statusCode !== undefined) throw thrown
    throw new Fault('REQUEST_INVALID', `The form cannot be read: ${rootMessage(thrown)}`, {}, thrown)
  }
  if (answering.length === 0) throw new Fault('REQUEST_INVALID', 'There is no picture among the parts')
  return { answers: await Promise.all(answering) }
}

const deadlineOf = (ms: Ms | undefined): EpochMs => Date.now() + (ms ?? usualDeadline)
const DeadlineMs = Type.Optional(
  Type.Integer({ minimum: 1, maximum: 60_000, description: 'how long it may wait for its turn, in milliseconds; 504 beyond that', default: usualDeadline }),
)

const nowhere = { x: 0, y: 0, width: 0, height: 0 }

/** Answers about the zones of a camera's picture. Throws `CAMERA_UNKNOWN`, `MODEL_UNAVAILABLE` and what the picture deserves. */
async function judge(tools: PredictionTools, caller: Caller, camera: string, task: string | undefined, bytes: Pieces, deadlineMs: Ms | undefined): Promise<FrameAnswers> {
  const { engine, zones, store } = tools
  allow(caller, 'predict', { camera, task })
  const tasks = within(caller.scope.tasks, task === undefined ? undefined : [task])
  if (!zones.loaded) throw new Fault('DATABASE_UNAVAILABLE', 'The zones have not been read yet', { cameraId: camera })
  const asked = zones.of(camera).filter((zone) => zone.task !== '' && (tasks.length === 0 || tasks.includes(zone.task)))
  if (asked.length === 0) throw new Fault('CAMERA_UNKNOWN', `Camera ${camera} has no zones${task ? ` for task ${task}` : ''}`, { cameraId: camera })
  const slotOf = new Map(asked.map((zone) => [zone.task, championOf(tools, zone.task)] as const))
  const fitting = asked.filter((zone) => {
    const slot = slotOf.get(zone.task)
    return slot && isPreparedFor(slot, preprocessingDigest(zone.preprocessing), camera, zone.reference?.sha256)
  })
  for (const [name, { change }] of slotOf) {
    if (!fitting.some((zone) => zone.task === name))
      throw new Fault('MODEL_UNAVAILABLE', `The model of task ${name} was trained on preprocessing ${change.preprocessing}, which no zone of ${camera} is prepared by`)
  }
  const models = new Map([...slotOf].map(([name, { change }]) => [name, change.digest]))
  using _ = engine.hold(models.values())
  const references = await referencesOf(fitting, ({ bucket, key }) => store.get(bucket, key))
  const { scored } = await engine.ask({ kind: 'zones', cameraId: camera, zones: fitting, references, models }, bytes, deadlineOf(deadlineMs))
  // each by its own model
  const traces = new Map([...slotOf].map(([name, slot]) => [name, traceOf(slot)]))
  const answers = scored.map(({ zone = '', task: name = '', rectangle = nowhere, scores }) => ({
    ...{ zone, task: name, traceId: traces.get(name) ?? '', ...rectangle },
    ...answerOf(slotOf.get(name) as Slot, scores),
  }))
  const [first = ''] = traces.values()
  return { camera, traceId: first, answers }
}

async function judgeFrame(tools: PredictionTools, caller: Caller, frameId: string, task: string | undefined, deadlineMs: Ms | undefined): Promise<FrameAnswers> {
  const { rows } = await tools.pool.query<{ camera_id: string; bucket: string; object_key: string }>('select camera_id, bucket, object_key from frames where frame_id = $1', [
    frameId,
  ])
  const [frame] = rows
  if (!frame) throw new Fault('FRAME_UNKNOWN', `The catalog knows no frame ${frameId}`, { frameId })
  return { frameId, ...(await judge(tools, caller, frame.camera_id, task, await tools.store.get(frame.bucket, frame.object_key), deadlineMs)) }
}

async function judgePicture(
  tools: PredictionTools,
  caller: Caller,
  task: string,
  { camera, zone, version, deadlineMs }: { readonly camera?: string; readonly zone?: string; readonly version?: string; readonly deadlineMs?: Ms },
  bytes: Pieces,
): Promise<PictureAnswer> {
  allow(caller, 'predict', { camera, task })
  const slot = servingOf(tools, task, version)
  const key = camera && zone ? referenceKey(camera, zone) : ''
  const { scored } = await tools.engine.ask({ kind: 'picture', digest: slot.change.digest, referenceKey: key }, bytes, deadlineOf(deadlineMs))
  return { task, ...pictureAnswerOf(slot, scored[0]?.scores ?? []) }
}

function addPictures(app: FastifyInstance, tools: PredictionTools): void {
  const Query = Type.Object({
    camera: Type.Optional(Type.String({ pattern: namePattern, description: 'whose zones are judged; not needed for frames of the catalog' })),
    task: Type.Optional(Name),
    deadlineMs: DeadlineMs,
  })
  app.post<{ Querystring: { camera?: string; task?: string; deadlineMs?: Ms } }>(
    '/v1/predict',
    {
      ...mayPredict,
      config: { described: { body: { ...pictureBodies, 'application/json': { schema: Frames } }, response: oneOrEach(Answers.FrameAnswers) } },
      schema: { summary: "Answers about the zones of a camera's picture, sent along or in the catalog", querystring: Query },
    },
    (request) => {
      const { camera, task, deadlineMs } = request.query
      if (request.headers['content-type']?.startsWith('application/json')) {
        const [problem] = Value.Errors(Frames, request.body)
        if (problem)
          throw new Fault(
            'REQUEST_INVALID',
            `${problem.instancePath.slice(1) || 'The body'} ${problem.message}; it is like { "frameIds": ["7c0b9d7e-3f0e-5f7a-9a53-0f6f1f3d2b1a"] }`,
          )
        const asked = request.body as Static<typeof Frames>
        request.caller.take(asked.frameIds.length - 1)
        return Promise.all(asked.frameIds.map((frameId) => orProblem(judgeFrame(tools, request.caller, frameId, asked.task ?? task, deadlineMs)))).then((answers) => ({ answers }))
      }
      if (camera === undefined) throw new Fault('REQUEST_INVALID', 'Say whose zones are judged: /v1/predict?camera=NAME')
      return eachPicture(request, (bytes) => judge(tools, request.caller, camera, task, bytes, deadlineMs))
    },
  )
  const Of = Type.Object({
    camera: Type.Optional(Type.String({ pattern: namePattern, description: 'with zone: what it usually looks like there is what the picture is compared with' })),
    zone: Type.Optional(Name),
    version: Type.Optional(Type.String({ maxLength: 40, description: 'a version that is loaded, or its alias (`challenger`, `shadow`); the champion when absent' })),
    deadlineMs: DeadlineMs,
  })
  app.post<{ Params: { task: string }; Querystring: { camera?: string; zone?: string; version?: string; deadlineMs?: Ms } }>(
    '/v1/models/:task/predict',
    {
      ...mayPredict,
      config: { described: { body: pictureBodies, response: oneOrEach(Answers.PictureAnswer) } },
      schema: { summary: 'The answer about a picture that shows nothing but what is asked about, or about each of several', params: Type.Object({ task: Name }), querystring: Of },
    },
    (request) => eachPicture(request, (bytes) => judgePicture(tools, request.caller, request.params.task, request.query, bytes)),
  )
}

/** The contract of a SageMaker container: it serves the one model there is, or the one that the header names. */
function addSageMaker(app: FastifyInstance, tools: PredictionTools, isReady: () => boolean): void {
  app.get('/ping', { schema: { hide: true } }, (_, reply) => reply.code(isReady() ? 200 : 503).send())
  app.post(
    '/invocations',
    {
      ...mayPredict,
      config: { described: { body: pictureBodies, response: oneOrEach(Answers.PictureAnswer) } },
      schema: { summary: 'SageMaker: as /v1/models/{task}/predict, for the one model that serves or the one that X-Amzn-SageMaker-Target-Model names' },
    },
    (request) => {
      const named = request.headers['x-amzn-sagemaker-target-model']
      const tasks = [...new Set(tools.slots.all.map(({ change }) => change.task))]
      if (named === undefined && tasks.length === 0) throw new Fault('MODEL_UNAVAILABLE', 'No model serves yet')
      if (named === undefined && tasks.length > 1) throw new Fault('REQUEST_INVALID', `Several models serve: name one of ${tasks.join(', ')} in X-Amzn-SageMaker-Target-Model`)
      return eachPicture(request, (bytes) => judgePicture(tools, request.caller, typeof named === 'string' ? named : (tasks[0] ?? ''), {}, bytes))
    },
  )
}

function addOpenInference(app: FastifyInstance, tools: PredictionTools, isReady: () => boolean): void {
  const { engine, slots } = tools
  const hidden = { schema: { hide: true } }
  const modelOf = ({ task, version }: { readonly task: string; readonly version?: string }): Slot => {
    const slot = version === undefined ? slots.of(task) : servingOf(tools, task, version)
    if (!slot) throw new Fault('MODEL_UNKNOWN', `No model ${task} is served`, { task })
    return slot
  }
  const ready = (is: boolean, reply: FastifyReply): FastifyReply => reply.code(is ? 200 : 503).send()
  app.get('/v2', hidden, () => serverMetadata)
  app.get('/v2/health/live', hidden, (_, reply) => ready(true, reply))
  app.get('/v2/health/ready', hidden, (_, reply) => ready(isReady(), reply))
  for (const path of ['/v2/models/:task', '/v2/models/:task/versions/:version']) {
    app.get<{ Params: { task: string; version?: string } }>(path, hidden, ({ params, caller }) => {
      allow(caller, 'models', { task: params.task })
      const { change, model } = modelOf(params)
      return modelMetadata(change.task, [change.version], model.engine, model.meta)
    })
    app.get<{ Params: { task: string; version?: string } }>(`${path}/ready`, hidden, ({ params, caller }, reply) => {
      allow(caller, 'models', { task: params.task })
      modelOf(params)
      return ready(true, reply)
    })
    const about = {
      ...mayPredict,
      config: {
        described: {
          body: { 'application/json': { schema: InferBody }, 'application/octet-stream': { schema: { type: 'string', contentMediaType: 'application/octet-stream' } } },
        },
      },
      schema: {
        summary: `Open Inference Protocol v2: ${inputName} in, ${outputName} out, as JSON or as binary tensors`,
        params: Type.Object({ task: Name, ...(path.includes(':version') ? { version: Type.String() } : {}) }),
      },
    }
    app.post<{ Params: { task: string; version?: string }; Body: Buffer }>(`${path}/infer`, about, async ({ params, headers, body, caller }, reply) => {
      allow(caller, 'predict', { task: params.task })
      const slot = modelOf(params)
      const { change, model } = slot
      const header = headers[jsonLengthHeader]
      const asked = readInferRequest(body ?? Buffer.alloc(0), header === undefined ? undefined : Number(header), model.meta)
      const { bytes, datatype, reference, timeoutMs } = asked
      // what it looks like there is told by the answers
      if (reference) allow(caller, 'predict', { camera: reference.split(' ')[0] })
      const { digest } = change
      const { scored } = await engine.ask(datatype === 'FP32' ? { kind: 'tensor', digest } : { kind: 'pixels', digest, referenceKey: reference }, bytes, deadlineOf(timeoutMs))
      const answer = writeInferAnswer(
        asked,
        { name: change.task, version: change.version, digest: change.digest, preprocessing: change.preprocessing },
        scored.map(({ scores }) => scores),
      )
      reply.header('x-trace-id', traceOf(slot))
      if (answer.jsonLength === undefined) return reply.type('application/json').send(answer.body)
      return reply.header(jsonLengthHeader, answer.jsonLength).type('application/octet-stream').send(answer.body)
    })
  }
}

export async function addPredictions(app: FastifyInstance, tools: PredictionTools, isReady: () => boolean): Promise<void> {
  const { slots } = tools
  const gather = gathering()
  app.removeContentTypeParser('text/plain')
  app.addContentTypeParser(['image/jpeg', 'image/png', 'image/webp', 'application/octet-stream'], gather)
  app.get('/v1/models', { config: { described: { response: answered(Answers.Models) } }, schema: { summary: 'Which models serve' } }, ({ caller }) => {
    allow(caller, 'models')
    const seen = slots.all.filter(({ change }) => caller.scope.tasks.length === 0 || caller.scope.tasks.includes(change.task))
    return { models: seen.map(({ change, model }) => ({ ...change, engine: model.engine, ...(model.why ? { why: model.why } : {}), classes: model.meta.classes })) }
  })
  // what is no picture is read over, and kept by the parser all the same
  await app.register(multipart, { limits: { files: 64, fileSize: 20_000_000, fields: 16, fieldSize: 10_000, parts: 80 } })
  addPictures(app, tools)
  addSageMaker(app, tools, isReady)
  // tensors come as they are: parsed here, and only once the model is known
  await app.register((scope, __, done) => {
    scope.removeAllContentTypeParsers()
    // Triton's clients name no type at all
    scope.addContentTypeParser('*', (request, payload, parsed) =>
      gather(request, payload, (error, pieces = []) => parsed(error, pieces.length === 1 ? pieces[0] : Buffer.concat(pieces))),
    )
    // in a problem document clients of the protocol look for this one
    scope.addHook('preSerialization', async (_, reply, payload) => (reply.statusCode < 400 ? payload : { ...(payload as object), error: (payload as { detail?: string }).detail }))
    addOpenInference(scope, tools, isReady)
    done()
  })
}

/** Paths that need no key: what a probe and a first look ask for. */
export function isOpenPath(path: string): boolean {
  return /^\/(healthz|readyz|metrics|ping|openapi\.json|docs(\/.*)?|v1\/client\.js|v2|v2\/health\/(live|ready))$/.test(path)
}
