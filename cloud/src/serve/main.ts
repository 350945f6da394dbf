/** Starts an inference server: the live stage, feeds, and predictions over HTTP. */

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { setTimeout as sleep } from 'node:timers/promises'
import websocket from '@fastify/websocket'
import { listOf } from '@frameloop/kit/config'
import { Fault } from '@frameloop/kit/fault'
import { listen, openApi } from '@frameloop/kit/http'
import type { Log } from '@frameloop/kit/log'
import { openObjectStore } from '@frameloop/kit/object-store'
import { databaseNotReady, openPool } from '@frameloop/kit/postgres'
import { retry } from '@frameloop/kit/retry'
import { runProcess } from '@frameloop/kit/run-process'
import type { Ms } from '@frameloop/kit/units'
import { openCodec } from '@frameloop/schemas/codec'
import type { ModelChanged } from '@frameloop/schemas/events'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { traceIdOf } from '@frameloop/schemas/trace'
import { kafkaBus, tail } from '@frameloop/stream-processors/chain/kafka-bus'
import { startStage } from '@frameloop/stream-processors/chain/run-stage'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { openZoneDirectory } from '@frameloop/stream-processors/features/zones'
import { needsKeys, ServeSettings } from '../config.ts'
import { openMlflow } from '../models/mlflow.ts'
import { ModelSlots } from '../models/model-slots.ts'
import { allow, KeyAccess, openAccess, requireCaller } from './access.ts'
import { Engine } from './engine.ts'
import { Feeds } from './feeds.ts'
import { hopObserver } from './hop-times.ts'
import { liveStage, runLive } from './live.ts'
import { addPredictions, championOf, isOpenPath, pictureAnswerOf } from './predictions.ts'
import { failureObserver, serveMetrics } from './serve-metrics.ts'
import { serveStream } from './stream.ts'

/** Of a picture, however it comes. */
const bodyLimit = 20_000_000
/** Who sends one letter by letter is gone within ten seconds. */
const patience = { whole: 30_000, silence: 8_000 }

/** Pictures that come over a WebSocket are masked: without bufferutil's native part `ws` takes three to five times as long with them. Throws `TOOL_MISSING`. */
function needNativeMasking(): void {
  const { unmask } = createRequire(import.meta.url)('bufferutil') as { unmask: () => void }
  if (!String(unmask).includes('[native code]')) throw new Fault('TOOL_MISSING', 'The package bufferutil is there without its native part')
}

/** How long live frames wait for the models of a start. */
const modelPatience: Ms = 60_000

/** An event, or undefined for what is none: a tombstone, rubbish. Waits while the registry is away. */
async function readable<Event>(read: () => Event | Promise<Event>, { topic, partition, offset, value }: BusRecord, log: Log, signal: AbortSignal): Promise<Event | undefined> {
  if (value.length === 0) return undefined
  const isAway = (thrown: unknown): boolean => thrown instanceof Fault && thrown.code === 'REGISTRY_UNAVAILABLE'
  try {
    return await retry(async () => read(), { backoff: { first: 200, cap: 5_000 }, isTransient: isAway }, signal)
  } catch (thrown) {
    if (signal.aborted) throw thrown
    log.warn({ err: thrown, topic, partition, offset }, 'a record that cannot be read is left out')
    return undefined
  }
}

await runProcess('serve', ServeSettings, async ({ config, log, metrics, lifetime, fail }) => {
  needNativeMasking()
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'serve'), (open) => open.end())
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const codec = openCodec(openRegistry(config.schemaRegistryUrl))
  const keys = needsKeys(config) ? new KeyAccess(pool, log) : undefined
  if (keys) lifetime.run('keys', (signal) => keys.run(signal), fail)
  else log.warn({ host: config.host }, 'whoever reaches this address may ask everything: API_KEYS is off')
  const access = keys ?? openAccess
  const engine = lifetime.own('engine', new Engine(), (open) => open.close())
  const mlflow = openMlflow(config.mlflowTrackingUri)
  const slots = new ModelSlots(mlflow, config.modelCacheFolder, engine, log)
  lifetime.run('models that wait', (signal) => slots.run(signal), fail)
  const feeds = new Feeds(({ bucket, key }) => store.get(bucket, key))
  serveMetrics(metrics, engine, feeds)
  lifetime.run('feed readers', (signal) => feeds.run(signal), fail)
  const zones = openZoneDirectory(pool, log, 2_000)
  lifetime.run('zones', (signal) => zones.run(signal), fail)
  // from its beginning the topic says who served once, who serves now, and goes on saying it: only who serves now is loaded
  let modelsLoaded = false
  lifetime.run(
    'models',
    async (signal) => {
      /** What the topic held when this began, until its end is reached. */
      let before: ModelChanged[] | undefined = []
      for await (const record of tail(config.kafkaBrokers, `frameloop.serve.models.${config.instance}`, topics.modelsChanged.name, 'beginning', signal)) {
        if (record) {
          const change = await readable(() => codec.decode('ModelChanged', record.value), record, log, signal)
          // one whose files do not come holds up none of the others
          if (change && before) before.push(change)
          else if (change) slots.apply(change, signal).catch(fail)
        } else {
          const latest = ModelSlots.latest(before ?? [])
          before = undefined
          const applied = latest.map((change) => ({ change, done: slots.apply(change, signal) }))
          for (const { done } of applied) done.catch(fail)
          // others answer beside a champion: nothing waits for them
          Promise.all(applied.map(({ change, done }) => change.alias === 'champion' && done)).then(
            () => {
              modelsLoaded = true
            },
            () => {},
          )
        }
      }
    },
    fail,
  )
  lifetime.run(
    'feeds',
    async (signal) => {
      for await (const record of tail(config.kafkaBrokers, `frameloop.serve.feeds.${config.instance}`, topics.predictionsMade.name, 'end', signal))
        if (record) {
          const made = await readable(() => codec.decode('PredictionMade', record.value), record, log, signal)
          if (made) feeds.publish(made, traceIdOf(record.headers['traceparent']), record)
        }
    },
    fail,
  )
  const live = startStage(liveStage(slots, engine, { made: hopObserver(metrics), failed: failureObserver(metrics, log) }), {
    bus: kafkaBus(config.kafkaBrokers),
    instance: config.instance,
    codec,
    store,
    bucketPrefix: config.bucketPrefix,
    log,
    metrics,
  })
  const lacksChampion = (): boolean => slots.waiting.some(({ task, alias }) => alias === 'champion' && slots.of(task) === undefined)
  // once it has answered anything it can answer HTTP and WebSockets for good, whatever is away
  let wasReady = false
  const notReady = () => {
    const why = (modelsLoaded && !lacksChampion() ? undefined : 'loading the models that serve') ?? (keys && !keys.isLoaded ? 'reading the keys' : undefined) ?? live.notReady()
    wasReady ||= why === undefined
    return wasReady ? {} : { serve: why ?? '' }
  }
  const degraded = async () => {
    const why = live.notReady()
    const waiting = slots.waiting.map(({ task, version }) => `version ${version} of ${task} waits to be loaded`).join(', ')
    const [postgres, away] = await Promise.all([databaseNotReady(pool), mlflow.notReady()])
    return { ...(why ? { 'live frames': why } : {}), ...(waiting ? { models: waiting } : {}), ...postgres, ...away }
  }
  const app = await openApi(
    { name: 'serve', metrics, notReady, degraded },
    { title: 'frameloop inference', bodyLimit, patience, log, host: config.host, allowedOrigins: listOf(config.allowedOrigins), allowedHosts: listOf(config.allowedHosts) },
  )
  // who is gone answers no closing words, and the end of the process waits for them
  await app.register(websocket, { options: { maxPayload: bodyLimit, perMessageDeflate: false, ...{ closeTimeout: 2_000 } } })
  requireCaller(app, access, isOpenPath)
  // pages elsewhere import it from here: it is public, and fits what it talks to
  const script = readFileSync(new URL('./client/client.js', import.meta.url))
  app.get('/v1/client.js', { config: { isPublic: true }, schema: { hide: true } }, (_, reply) =>
    reply.type('text/javascript').header('access-control-allow-origin', '*').header('cache-control', 'no-cache').send(script),
  )
  app.get('/v1/feeds', { websocket: true, schema: { hide: true }, onRequest: async ({ caller }) => allow(caller, 'feeds') }, (socket, { caller, raw }) => {
    access.whileHeld(caller, socket)
    feeds.add(socket, raw.socket, caller.scope)
  })
  app.get('/v1/stream', { websocket: true, schema: { hide: true }, onRequest: async ({ caller }) => allow(caller, 'predict') }, (socket, { caller, raw }) => {
    access.whileHeld(caller, socket)
    serveStream(socket, { engine, championOf: (task) => championOf({ slots, zones }, task), answerOf: pictureAnswerOf, caller, wire: raw.socket, largest: bodyLimit })
  })
  await addPredictions(app, { engine, slots, zones, store, pool }, () => Object.keys(notReady()).length === 0)
  lifetime.run(
    'live',
    async (signal) => {
      // a frame that comes before its model goes by unanswered; other replicas answer meanwhile. One task whose files do not come
      // holds up the others for a minute, and no longer
      const until = Date.now() + modelPatience
      while (!signal.aborted && Date.now() < until && (!modelsLoaded || lacksChampion())) await sleep(100, undefined, { signal }).catch(() => {})
      if (!signal.aborted) await runLive(live.run, signal, log)
    },
    fail,
  )
  await listen(app, config, lifetime)
})
