/** Starts the console: the page, what it reads, and the one public port in embedded mode (feeds and predictions are handed on to serve). */
import { existsSync } from 'node:fs'
import type { IncomingMessage } from 'node:http'
import { fileURLToPath } from 'node:url'
import httpProxy from '@fastify/http-proxy'
import fastifyStatic from '@fastify/static'
import { listOf } from '@frameloop/kit/config'
import { Fault, rootMessage } from '@frameloop/kit/fault'
import { listen, openApi } from '@frameloop/kit/http'
import { openObjectStore } from '@frameloop/kit/object-store'
import { databaseNotReady, openPool } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { bucketName } from '@frameloop/schemas/object-keys'
import Type from 'typebox'
import { ApiSettings } from '../config.ts'
import { type Overview, readOverview } from './overview.ts'

const Settings = Type.Object({
  ...ApiSettings.properties,
  serveUrl: Type.String({ pattern: '^https?://', description: 'inference server' }),
  serveApiKey: Type.String({ default: '', description: 'key that the page asks inference with; empty where inference wants none' }),
  healthUrls: Type.String({ default: '{}', description: 'JSON object: process name → its address, for rates and lag' }),
})

/** Bytes that may wait for a page that takes nothing; it comes back and goes on where it was. */
const slowLimit = 8_000_000

/** What a WebSocket that is passed on says it is: what it said itself, else what the page is allowed. */
function loginOf(authorization: string | undefined, url: string, own: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  if (authorization !== undefined) return { authorization }
  return /[?&]ticket=/.test(url) ? {} : own
}

/** Keys of pictures, as `schemas/object-keys` makes them; nothing else is read. */
const pictureKey = /^(raw|frames)\/[A-Za-z0-9._-]+(\/[A-Za-z0-9._-]+){2,8}\.(jpg|png|webp)$/

await runProcess('console', Settings, async ({ config, log, metrics, lifetime }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'console'), (open) => open.end())
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const health = JSON.parse(config.healthUrls) as Record<string, string>
  const app = await openApi(
    {
      name: 'console',
      metrics,
      notReady: () => databaseNotReady(pool),
    },
    { title: 'frameloop console', bodyLimit: 20_000_000, log, host: config.host, allowedOrigins: listOf(config.allowedOrigins), allowedHosts: listOf(config.allowedHosts) },
  )

  // many pages may ask at once; the answer is made once a second
  let latest: { readonly at: number; readonly overview: Promise<Overview> } | undefined
  app.get('/api/overview', { schema: { summary: 'Cameras, stages, models, runs, live quality' } }, async () => {
    if (!latest || Date.now() - latest.at > 1_000) latest = { at: Date.now(), overview: readOverview(pool, health) }
    return latest.overview
  })
  app.get<{ Params: { '*': string } }>('/api/pictures/*', { schema: { summary: 'A picture by its key' } }, async ({ params }, reply) => {
    const key = params['*']
    if (!pictureKey.test(key) || key.includes('..')) throw new Fault('REQUEST_INVALID', 'This is no key of a picture')
    const bytes = await store.get(bucketName(config.bucketPrefix, key.startsWith('raw/') ? 'raw' : 'processed'), key)
    const type = key.endsWith('.png') ? 'image/png' : key.endsWith('.webp') ? 'image/webp' : 'image/jpeg'
    return reply.type(type).header('cache-control', 'private, max-age=3600, immutable').header('x-content-type-options', 'nosniff').send(bytes)
  })
  const login = config.serveApiKey ? { authorization: `Bearer ${config.serveApiKey}` } : {}
  await app.register(httpProxy, {
    ...{ upstream: config.serveUrl, prefix: '/v1', rewritePrefix: '/v1', websocket: true },
    // whoever brings a key of their own keeps it; where the page came from has been looked at here
    replyOptions: {
      rewriteRequestHeaders: (_, { origin: __, ...headers }) => ({ ...login, ...headers }),
      onError: (reply, { error }) => void reply.send(new Fault('MODEL_UNAVAILABLE', `Inference does not answer: ${rootMessage(error)}`, {}, error)),
    },
    // its types do not know that it asks for them
    wsClientOptions: { rewriteRequestHeaders: (_: unknown, { headers, url }: IncomingMessage) => loginOf(headers.authorization, url ?? '', login) } as object,
    // inference sees a proxy that takes everything: who takes nothing is seen here
    // the end of the process waits for their closing words
    wsServerOptions: { closeTimeout: 2_000 } as object,
    wsHooks: {
      onOutgoingMessage: (_, source) => {
        if (source.bufferedAmount > slowLimit) source.terminate()
      },
    },
  })
  const page = fileURLToPath(new URL('./page', import.meta.url))
  if (!existsSync(page)) throw new Fault('TOOL_MISSING', 'The page has not been built; `npm start` builds it', { page })
  await app.register(fastifyStatic, { root: page })
  await listen(app, config, lifetime)
})
