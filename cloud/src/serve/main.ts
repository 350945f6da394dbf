/** Starts an inference server: the live stage, feeds, and predictions over HTTP. */

import websocket from '@fastify/websocket'
import { Fault } from '@frameloop/kit/fault'
import { listen, openApi } from '@frameloop/kit/http'
import { openObjectStore } from '@frameloop/kit/object-store'
import { openPool } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { namePattern } from '@frameloop/schemas/ids'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent, traceIdOf } from '@frameloop/schemas/trace'
import { kafkaBus, tail } from '@frameloop/stream-processors/chain/kafka-bus'
import { startStage } from '@frameloop/stream-processors/chain/run-stage'
import { referencesOf } from '@frameloop/stream-processors/features/features'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { openZoneDirectory } from '@frameloop/stream-processors/features/zones'
import { openPixelThreads } from '@frameloop/stream-processors/pixels/pixel-threads'
import Type from 'typebox'
import { CloudSettings } from '../config.ts'
import { openMlflow } from '../models/mlflow.ts'
import { ModelSlots } from '../models/model-slots.ts'
import { referenceKey } from '../models/network.ts'
import { Batcher } from './batcher.ts'
import { Feeds } from './feeds.ts'
import { isPreparedFor, liveStage } from './live.ts'

await runProcess('serve', CloudSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'serve'), (open) => open.end())
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const codec = openCodec(openRegistry(config.schemaRegistryUrl))
  const slots = lifetime.own('models', new ModelSlots(openMlflow(config.mlflowTrackingUri), config.modelCacheFolder, log), (open) => open.close())
  // decoding never blocks the sockets
  const pixelThreads = lifetime.own('pixel threads', openPixelThreads(), (open) => open.close())
  const batcher = new Batcher()
  const feeds = new Feeds()
  const zones = openZoneDirectory(pool, log, 2_000)
  lifetime.run('zones', (signal) => zones.run(signal), fail)
  // the topic is compacted: from its beginning it says who serves now, and goes on saying it
  let modelsLoaded = false
  lifetime.run(
    'models',
    async (signal) => {
      for await (const record of tail(config.kafkaBrokers, `frameloop.serve.models.${config.instance}`, topics.modelsChanged.name, 'beginning', signal)) {
        if (record) await slots.apply(await codec.decode('ModelChanged', record.value), signal)
        else modelsLoaded = true
      }
    },
    fail,
  )
  lifetime.run(
    'feeds',
    async (signal) => {
      for await (const record of tail(config.kafkaBrokers, `frameloop.serve.feeds.${config.instance}`, topics.predictionsMade.name, 'end', signal))
        if (record) feeds.publish(await codec.decode('PredictionMade', record.value), traceIdOf(record.headers['traceparent']), record)
    },
    fail,
  )
  const live = startStage(liveStage(slots, batcher), {
    bus: kafkaBus(config.kafkaBrokers),
    instance: config.instance,
    codec,
    store,
    bucketPrefix: config.bucketPrefix,
    log,
    metrics,
  })
  const notReady = () => {
    const why = live.notReady() ?? (modelsLoaded ? undefined : 'loading the models that serve')
    return why ? { serve: why } : {}
  }
  const app = await openApi({ name: 'serve', metrics, notReady }, { title: 'frameloop inference', bodyLimit: 20_000_000, log })
  await app.register(websocket, { options: { maxPayload: 64 * 1024, perMessageDeflate: false } })
  app.get('/v1/feeds', { websocket: true, schema: { hide: true } }, (socket) => feeds.add(socket))
  app.get('/v1/models', { schema: { summary: 'Which models serve' } }, () => ({
    models: slots.all.map(({ change, predictor }) => ({ ...change, engine: 'tfjs-node', classes: predictor.meta.classes })),
  }))
  app.addContentTypeParser(['image/jpeg', 'image/png', 'image/webp', 'application/octet-stream'], { parseAs: 'buffer' }, (_, body, done) => done(null, body))
  const Query = Type.Object({ camera: Type.String({ pattern: namePattern, description: 'whose zones are judged' }), task: Type.Optional(Type.String({ pattern: namePattern })) })
  app.post<{ Body: Buffer; Querystring: { camera: string; task?: string } }>(
    '/v1/predict',
    { schema: { summary: 'Answers about the zones of a picture', querystring: Query } },
    async ({ body, query }) => {
      if (!Buffer.isBuffer(body) || body.length === 0)
        throw new Fault('REQUEST_INVALID', 'Send the picture itself as the body, with its content type (image/jpeg, image/png, image/webp)')
      const asked = zones.of(query.camera).filter(({ task }) => task !== '' && (query.task === undefined || task === query.task))
      if (asked.length === 0) throw new Fault('CAMERA_UNKNOWN', `Camera ${query.camera} has no zones${query.task ? ` for task ${query.task}` : ''}`, { cameraId: query.camera })
      const traceId = traceIdOf(newTraceparent())
      const slotOf = new Map(
        [...new Set(asked.map(({ task }) => task))].map((task) => {
          const slot = slots.of(task)
          if (!slot) throw new Fault('MODEL_UNAVAILABLE', `No model serves task ${task} yet`, { task })
          return [task, slot] as const
        }),
      )
      const fitting = asked.filter(({ task, preprocessing, reference }) => {
        const slot = slotOf.get(task)
        return slot && isPreparedFor(slot, preprocessingDigest(preprocessing), query.camera, reference?.sha256)
      })
      for (const [task, slot] of slotOf) {
        if (!fitting.some((zone) => zone.task === task))
          throw new Fault('MODEL_INVALID', `The model of task ${task} was trained on preprocessing ${slot.change.preprocessing}, which no zone of ${query.camera} is prepared by`)
      }
      const references = await referencesOf(fitting, ({ bucket, key }) => store.get(bucket, key))
      const { groups } = await pixelThreads.prepare(body, fitting, references)
      const answers = await Promise.all(
        groups
          .flatMap(({ packed, zones: prepared }) => prepared.flatMap((zone) => zone.tasks.map((task) => ({ packed, task, ...zone }))))
          .map(async ({ packed, zone, task, rectangle, offset, shape }) => {
            const slot = slotOf.get(task)
            if (!slot) throw new Fault('INTERNAL', `Zone ${zone} was prepared for task ${task}, which nobody asked about`)
            const pixels = packed.subarray(offset, offset + shape[0] * shape[1] * shape[2])
            const { scores } = await batcher.ask(slot.predictor, { referenceKey: referenceKey(query.camera, zone), pixels })
            const confidence = Math.max(...scores)
            const { classes } = slot.predictor.meta
            return {
              zone,
              task,
              ...rectangle,
              answer: classes[scores.indexOf(confidence)],
              confidence,
              scores: classes.map((name, at) => ({ class: name, score: scores[at] })),
              modelName: slot.change.modelName,
              modelVersion: slot.change.version,
              modelDigest: slot.change.digest,
              preprocessing: slot.change.preprocessing,
            }
          }),
      )
      return { camera: query.camera, traceId, answers }
    },
  )
  lifetime.run('live', (signal) => live.run(signal), fail)
  await listen(app, config, lifetime)
})
