/** Predictions over HTTP: a camera's whole picture, a picture of what is asked about, and tensors by the Open Inference Protocol. */
import { Fault } from '@frameloop/kit/fault'
import { problemOf } from '@frameloop/kit/http'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { namePattern } from '@frameloop/schemas/ids'
import { newTraceparent, traceIdOf } from '@frameloop/schemas/trace'
import { referencesOf } from '@frameloop/stream-processors/features/features'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import type { ZoneDirectory } from '@frameloop/stream-processors/features/zones'
import type { FastifyInstance, FastifyReply } from 'fastify'
import Type from 'typebox'
import { referenceKey } from '../models/model-input.ts'
import type { ModelSlots, Slot } from '../models/model-slots.ts'
import type { Engine } from './engine.ts'
import { isPreparedFor } from './live.ts'
import { inputName, jsonLengthHeader, modelMetadata, outputName, readInferRequest, serverMetadata, writeInferAnswer } from './open-inference.ts'

export interface PredictionTools {
  readonly engine: Engine
  readonly slots: ModelSlots
  readonly zones: ZoneDirectory
  readonly store: ObjectStore
}

/** The champion of a task. Throws `MODEL_UNAVAILABLE`. */
export function championOf(slots: ModelSlots, task: string): Slot {
  const slot = slots.of(task)
  if (!slot) throw new Fault('MODEL_UNAVAILABLE', `No model serves task ${task} yet`, { task })
  return slot
}

/** What every answer says: the class, how sure, and which model says so. */
export function answerOf({ change, model }: Slot, scores: readonly number[]): object {
  const confidence = Math.max(...scores)
  const { classes } = model.meta
  return {
    ...{ answer: classes[scores.indexOf(confidence)], confidence, scores: classes.map((name, at) => ({ class: name, score: scores[at] })) },
    ...{ modelName: change.modelName, modelVersion: change.version, modelDigest: change.digest, preprocessing: change.preprocessing },
  }
}

function pictureOf(body: unknown): Buffer {
  if (!Buffer.isBuffer(body) || body.length === 0)
    throw new Fault('REQUEST_INVALID', 'Send the picture itself as the body, with its content type (image/jpeg, image/png, image/webp)')
  return body
}

const Name = Type.String({ pattern: namePattern })

function addPictures(app: FastifyInstance, { engine, slots, zones, store }: PredictionTools): void {
  const Query = Type.Object({ camera: Type.String({ pattern: namePattern, description: 'whose zones are judged' }), task: Type.Optional(Name) })
  app.post<{ Body: Buffer; Querystring: { camera: string; task?: string } }>(
    '/v1/predict',
    { schema: { summary: "Answers about the zones of a camera's picture", querystring: Query } },
    async ({ body, query: { camera, task } }) => {
      const bytes = pictureOf(body)
      const asked = zones.of(camera).filter((zone) => zone.task !== '' && (task === undefined || zone.task === task))
      if (asked.length === 0) throw new Fault('CAMERA_UNKNOWN', `Camera ${camera} has no zones${task ? ` for task ${task}` : ''}`, { cameraId: camera })
      const slotOf = new Map(asked.map((zone) => [zone.task, championOf(slots, zone.task)] as const))
      const fitting = asked.filter((zone) => {
        const slot = slotOf.get(zone.task)
        return slot && isPreparedFor(slot, preprocessingDigest(zone.preprocessing), camera, zone.reference?.sha256)
      })
      for (const [name, { change }] of slotOf) {
        if (!fitting.some((zone) => zone.task === name))
          throw new Fault('MODEL_INVALID', `The model of task ${name} was trained on preprocessing ${change.preprocessing}, which no zone of ${camera} is prepared by`)
      }
      const models = new Map([...slotOf].map(([name, { change }]) => [name, change.digest]))
      using _ = engine.hold(models.values())
      const references = await referencesOf(fitting, ({ bucket, key }) => store.get(bucket, key))
      const { scored } = await engine.ask({ kind: 'zones', cameraId: camera, bytes, zones: fitting, references, models })
      const answers = scored.map(({ zone, task: name = '', rectangle, scores }) => ({ zone, task: name, ...rectangle, ...answerOf(slotOf.get(name) as Slot, scores) }))
      return { camera, traceId: traceIdOf(newTraceparent()), answers }
    },
  )
  const Of = Type.Object({
    camera: Type.Optional(Type.String({ pattern: namePattern, description: 'with zone: what it usually looks like there is what the picture is compared with' })),
    zone: Type.Optional(Name),
  })
  app.post<{ Body: Buffer; Params: { task: string }; Querystring: { camera?: string; zone?: string } }>(
    '/v1/models/:task/predict',
    { schema: { summary: 'The answer about a picture that shows nothing but what is asked about', params: Type.Object({ task: Name }), querystring: Of } },
    async ({ body, params, query: { camera, zone } }) => {
      const slot = championOf(slots, params.task)
      const key = camera && zone ? referenceKey(camera, zone) : ''
      const { scored } = await engine.ask({ kind: 'picture', digest: slot.change.digest, referenceKey: key, bytes: pictureOf(body) })
      return { task: params.task, traceId: traceIdOf(newTraceparent()), ...answerOf(slot, scored[0]?.scores ?? []) }
    },
  )
}

function addOpenInference(app: FastifyInstance, { engine, slots }: PredictionTools, isReady: () => boolean): void {
  const hidden = { schema: { hide: true } }
  const modelOf = ({ task, version }: { readonly task: string; readonly version?: string }): Slot => {
    const slot = slots.of(task)
    if (!slot || (version !== undefined && slot.change.version !== version))
      throw new Fault('MODEL_UNKNOWN', `No model ${task}${version ? ` of version ${version}` : ''} is served`, { task, version })
    return slot
  }
  const ready = (is: boolean, reply: FastifyReply): FastifyReply => reply.code(is ? 200 : 503).send()
  app.get('/v2', hidden, () => serverMetadata)
  app.get('/v2/health/live', hidden, (_, reply) => ready(true, reply))
  app.get('/v2/health/ready', hidden, (_, reply) => ready(isReady(), reply))
  for (const path of ['/v2/models/:task', '/v2/models/:task/versions/:version']) {
    app.get<{ Params: { task: string; version?: string } }>(path, hidden, ({ params }) => {
      const { change, model } = modelOf(params)
      return modelMetadata(change.task, [change.version], model.engine, model.meta)
    })
    app.get<{ Params: { task: string; version?: string } }>(`${path}/ready`, hidden, ({ params }, reply) => {
      modelOf(params)
      return ready(true, reply)
    })
    const about = {
      schema: {
        summary: `Open Inference Protocol v2: ${inputName} in, ${outputName} out, as JSON or as binary tensors`,
        params: Type.Object({ task: Name, ...(path.includes(':version') ? { version: Type.String() } : {}) }),
      },
    }
    app.post<{ Params: { task: string; version?: string }; Body: Buffer }>(`${path}/infer`, about, async ({ params, headers, body }, reply) => {
      const { change, model } = modelOf(params)
      const header = headers[jsonLengthHeader]
      const asked = readInferRequest(body ?? Buffer.alloc(0), header === undefined ? undefined : Number(header), model.meta)
      const { bytes, datatype, reference } = asked
      const { digest } = change
      const { scored } = await engine.ask(datatype === 'FP32' ? { kind: 'tensor', digest, bytes } : { kind: 'pixels', digest, referenceKey: reference, bytes })
      const answer = writeInferAnswer(
        asked,
        { name: change.task, version: change.version },
        scored.map(({ scores }) => scores),
      )
      if (answer.jsonLength === undefined) return reply.type('application/json').send(answer.body)
      return reply.header(jsonLengthHeader, answer.jsonLength).type('application/octet-stream').send(answer.body)
    })
  }
}

export async function addPredictions(app: FastifyInstance, tools: PredictionTools, isReady: () => boolean): Promise<void> {
  const { slots } = tools
  app.addContentTypeParser(['image/jpeg', 'image/png', 'image/webp', 'application/octet-stream'], { parseAs: 'buffer' }, (_, body, done) => done(null, body))
  app.get('/v1/models', { schema: { summary: 'Which models serve' } }, () => ({
    models: slots.all.map(({ change, model }) => ({ ...change, engine: model.engine, ...(model.why ? { why: model.why } : {}), classes: model.meta.classes })),
  }))
  addPictures(app, tools)
  // tensors come as they are: parsed here, and only once the model is known
  await app.register((scope, __, done) => {
    scope.removeAllContentTypeParsers()
    // Triton's clients name no type at all
    scope.addContentTypeParser('*', { parseAs: 'buffer' }, (_, body, parsed) => parsed(null, body))
    scope.setErrorHandler((thrown, _, reply) => {
      const { status, document } = problemOf(thrown)
      // clients of the protocol look for this one
      return reply
        .code(status)
        .type('application/problem+json')
        .send({ ...document, error: document['detail'] })
    })
    addOpenInference(scope, tools, isReady)
    done()
  })
}
