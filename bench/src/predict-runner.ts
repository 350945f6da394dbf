/** Inference alone in a process of its own: our routes and our engine, with one model from a folder. Asked by `predict.ts`. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import websocket from '@fastify/websocket'
import { digestOf, type ModelFiles, modelFileNames } from '@frameloop/cloud/models/model-files'
import type { ModelSlots, Slot } from '@frameloop/cloud/models/model-slots'
import { openAccess, requireCaller } from '@frameloop/cloud/serve/access'
import { Engine } from '@frameloop/cloud/serve/engine'
import { addPredictions, championOf, pictureAnswerOf } from '@frameloop/cloud/serve/predictions'
import { serveStream } from '@frameloop/cloud/serve/stream'
import { openApi } from '@frameloop/kit/http'
import { openLog } from '@frameloop/kit/log'
import { openMetrics } from '@frameloop/kit/metrics'
import type { ObjectStore } from '@frameloop/kit/object-store'
import type { Pool } from '@frameloop/kit/postgres'
import type { Tensor } from '@tensorflow/tfjs-core'
import { median } from './measure.ts'

export interface PredictJob {
  readonly folder: string
  /** Writes a model into the folder and ends; half of these crops (raw side x side x 3, base64) belong to either class. */
  readonly write?: readonly string[]
  /** Of the model's input; 64 unless said. */
  readonly side?: number
  readonly port?: number
}

export const task = 'bench'
// a model's crops do not fit into an argument
const job = JSON.parse(process.argv[2] === '-' ? readFileSync(0, 'utf8') : (process.argv[2] ?? '{}')) as PredictJob

async function writeBenchModel(crops: readonly string[], side: number): Promise<void> {
  const { tf } = await import('@frameloop/cloud/models/tensorflow')
  const { writeInput } = await import('@frameloop/cloud/models/model-input')
  const { buildNetwork } = await import('@frameloop/cloud/models/network')
  const { writeModel } = await import('@frameloop/cloud/models/write-model')
  const preprocessing = { width: side, height: side }
  const pixels = new Uint8Array(side * side * 3).map((_, at) => (at * 7) % 256)
  const about = { task, classes: ['free', 'taken'], ...preprocessing, channels: 3, preprocessing: '', preprocessingParameters: preprocessing, referencePictures: {} }
  const network = buildNetwork([side, side, 3], 2, 1)
  // a network that has learned nothing says the same of all; its last bias is set so that it does not
  const leads = crops.map((crop) => {
    const input = new Float32Array(pixels.length)
    writeInput(input, 0, Buffer.from(crop, 'base64'), pixels, { width: side, channels: 3 })
    const [free = 0, taken = 0] = (network.predict(tf.tensor4d(input, [1, side, side, 3])) as Tensor).dataSync()
    return free - taken
  })
  const [kernel] = network.layers.at(-1)?.getWeights() ?? []
  if (kernel) network.layers.at(-1)?.setWeights([kernel, tf.tensor1d([0, median(leads)])])
  const files = await writeModel(network, new Map([['c z', pixels]]), [{ referenceKey: 'c z', pixels }], {
    ...about,
    seed: 1,
    datasetDigest: '',
    cutAt: '',
  })
  mkdirSync(job.folder, { recursive: true })
  for (const [name, bytes] of files) writeFileSync(join(job.folder, name), bytes)
}

async function serve(port: number): Promise<void> {
  const files: ModelFiles = new Map(modelFileNames.map((name) => [name, readFileSync(join(job.folder, name))]))
  const digest = digestOf(files)
  const engine = new Engine(undefined, undefined, new URL('engine-thread.mjs', import.meta.url))
  const model = await engine.load(digest, files)
  const slot = { change: { task, modelName: 'bench', version: '1', digest, preprocessing: '' }, model } as unknown as Slot
  const slots = { of: () => slot, all: [slot] } as unknown as ModelSlots
  const zones = { of: () => [], hasTask: () => true, loaded: true }
  const log = openLog('bench', 'error')
  const app = await openApi({ name: 'bench', metrics: openMetrics('bench'), notReady: () => ({}) }, { title: 'bench', bodyLimit: 20_000_000, log, host: '127.0.0.1' })
  await app.register(websocket, { options: { maxPayload: 20_000_000, perMessageDeflate: false } })
  requireCaller(app, openAccess, () => false)
  app.get('/v1/stream', { websocket: true }, (socket, { raw }) =>
    serveStream(socket, { engine, championOf: (name) => championOf({ slots, zones }, name), answerOf: pictureAnswerOf, wire: raw.socket }),
  )
  await addPredictions(app, { engine, slots, zones, store: undefined as unknown as ObjectStore, pool: undefined as unknown as Pool }, () => true)
  await app.listen({ host: '127.0.0.1', port })
  process.send?.('ready')
  process.on('message', (message: { readonly kind: 'inProcess'; readonly pictures: readonly string[]; readonly ahead: number; readonly seconds: number }) => {
    void (async () => {
      const bytes = message.pictures.map((picture) => Buffer.from(picture, 'base64'))
      const until = performance.now() + message.seconds * 1000
      let answered = 0
      const ask = async (): Promise<void> => {
        while (performance.now() < until) {
          await engine.ask({ kind: 'picture', digest, referenceKey: 'c z' }, bytes[answered % bytes.length] as Buffer)
          answered += 1
        }
      }
      await Promise.all(Array.from({ length: message.ahead }, ask))
      process.send?.({ perSecond: answered / message.seconds })
    })()
  })
}

process.once('SIGTERM', () => process.exit())
// it does not outlive the benchmark that asked for it
process.once('disconnect', () => process.exit())
await (job.write ? writeBenchModel(job.write, job.side ?? 64) : serve(job.port ?? 0))
if (job.write) process.exit(0)
