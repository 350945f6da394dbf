/** Runs the processor named on the command line: validate, extract, features, catalog or archive. */
import { openHealth } from '@frameloop/kit/health'
import { openObjectStore } from '@frameloop/kit/object-store'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { type ProcessContext, runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { bucketName } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import type { Static } from 'typebox'
import { startArchive } from './archive/archive.ts'
import { startCatalog } from './catalog/catalog.ts'
import { kafkaBus, readBounds } from './chain/kafka-bus.ts'
import { type StageTools, startStage } from './chain/run-stage.ts'
import { ChainSettings } from './config.ts'
import { extractStage } from './extract/extract.ts'
import { featuresStage } from './features/features.ts'
import { openZoneDirectory } from './features/zones.ts'
import { openPixelThreads, type PixelThreads } from './pixels/pixel-threads.ts'
import { openAgentKeys } from './validate/agent-keys.ts'
import { validateStage } from './validate/validate.ts'

type Context = ProcessContext<Static<typeof ChainSettings>>

const pool = ({ config, name, lifetime }: Context): Pool => lifetime.own('pool', openPool(config.databaseUrl, name), (open) => open.end())

const pixels = ({ config, lifetime }: Context): PixelThreads => lifetime.own('pixel threads', openPixelThreads(config.pixelThreads), (open) => open.close())

/** Every processor of the chain: one line each. */
const processors = {
  validate: (context: Context, tools: StageTools) => {
    const { ffmpegPath: ffmpeg, ffprobePath: ffprobe, requireSignatures } = context.config
    const keys = openAgentKeys(pool(context), context.log, 2_000)
    context.lifetime.run('keys', (signal) => keys.run(signal), context.fail)
    const bucket = bucketName(context.config.bucketPrefix, 'raw')
    const stage = startStage(validateStage({ ffmpeg, ffprobe, pixels: pixels(context), keys, bucket, requireSignatures }), tools)
    return { run: stage.run, notReady: () => (keys.loaded ? stage.notReady() : 'waiting for the keys of agents') }
  },
  extract: ({ config }: Context, tools: StageTools) => startStage(extractStage({ ...config, ffmpeg: config.ffmpegPath, ffprobe: config.ffprobePath }), tools),
  features: (context: Context, tools: StageTools) => {
    const zones = openZoneDirectory(pool(context), context.log, 2_000)
    context.lifetime.run('zones', (signal) => zones.run(signal), context.fail)
    const stage = startStage(featuresStage(zones, context.config.bucketPrefix, pixels(context)), tools)
    return { run: stage.run, notReady: () => (zones.loaded ? stage.notReady() : 'waiting for the zones') }
  },
  catalog: (context: Context, tools: StageTools) => startCatalog(pool(context), tools),
  archive: (context: Context, tools: StageTools) =>
    startArchive(pool(context), { ...tools, readBounds: (names) => readBounds(context.config.kafkaBrokers, 'frameloop.archive', names) }, context.config.archiveRecords),
} as const

const name = process.argv[2] ?? ''
if (!(name in processors)) {
  process.stderr.write(`usage: main.ts ${Object.keys(processors).join(' | ')}\n`)
  process.exitCode = 2
} else {
  await runProcess(name, ChainSettings, async (context) => {
    const { config, log, metrics, lifetime, fail } = context
    const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
    const codec = openCodec(openRegistry(config.schemaRegistryUrl))
    const tools: StageTools = { bus: kafkaBus(config.kafkaBrokers), instance: config.instance, codec, store, bucketPrefix: config.bucketPrefix, log, metrics }
    const stage = processors[name as keyof typeof processors](context, tools)
    await openHealth(
      {
        name,
        metrics,
        notReady: () => {
          const why = stage.notReady()
          return why ? { [name]: why } : {}
        },
      },
      config,
      lifetime,
    )
    lifetime.run(name, (signal) => stage.run(signal), fail)
  })
}
