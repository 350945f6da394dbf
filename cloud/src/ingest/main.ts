/** Starts the ingest API: what users upload and what other systems send. */
import { setTimeout as sleep } from 'node:timers/promises'
import { listOf } from '@frameloop/kit/config'
import { Fault } from '@frameloop/kit/fault'
import { listen, openApi } from '@frameloop/kit/http'
import { openKafka } from '@frameloop/kit/kafka'
import { openObjectStore } from '@frameloop/kit/object-store'
import { databaseNotReady, openPool } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { namePattern } from '@frameloop/schemas/ids'
import { openRegistry } from '@frameloop/schemas/registry'
import { privateKeyOf } from '@frameloop/schemas/signature'
import Type from 'typebox'
import { IngestSettings } from '../config.ts'
import { isTime } from '../labels/labels.ts'
import { announceOpen, ingest } from './ingest.ts'

/** A clip of a minute at 8 Mbit/s is 60 MB. */
const largestUpload = 200_000_000
/** The largest one over a link of 3 Mbit/s takes 9 minutes. */
const uploadPatience = { whole: 600_000, silence: 60_000 }

const Query = Type.Object({
  source: Type.String({ pattern: namePattern, description: 'who sends; acts as a camera id' }),
  site: Type.String({ pattern: namePattern, default: 'site-1' }),
  capturedAt: Type.Optional(Type.String({ description: 'capture time (ISO 8601); now when absent' })),
})

/** Before there were cameras to send from; times beyond it are slips of a unit. */
const earliest = Date.UTC(2000)

await runProcess('ingest', IngestSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'ingest'), (open) => open.end())
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const producer = openKafka(config.kafkaBrokers, 'ingest', log).producer()
  await producer.connect()
  lifetime.own('producer', producer, (open) => open.disconnect())
  const tools = {
    pool,
    store,
    producer,
    codec: openCodec(openRegistry(config.schemaRegistryUrl)),
    bucketPrefix: config.bucketPrefix,
    log,
    ...(config.signingKey ? { signingKey: privateKeyOf(config.signingKey) } : {}),
  }
  const notReady = () => databaseNotReady(pool)
  const app = await openApi(
    { name: 'ingest', metrics, notReady },
    {
      title: 'frameloop ingest',
      bodyLimit: largestUpload,
      log,
      host: config.host,
      patience: uploadPatience,
      allowedOrigins: listOf(config.allowedOrigins),
      allowedHosts: listOf(config.allowedHosts),
    },
  )
  app.addContentTypeParser(/^(image|video)\/|^application\/octet-stream/, { parseAs: 'buffer' }, (_, body, done) => done(null, body))
  app.post<{ Body: Buffer; Querystring: { source: string; site: string; capturedAt?: string }; Headers: { 'idempotency-key'?: string; 'content-type'?: string } }>(
    '/v1/media',
    {
      schema: {
        summary: 'Send one picture or clip as the body',
        querystring: Query,
        headers: Type.Object({ 'idempotency-key': Type.Optional(Type.String({ minLength: 1, maxLength: 255 })) }),
      },
    },
    async ({ body, query, headers }, reply) => {
      if (!Buffer.isBuffer(body) || body.length === 0) throw new Fault('UPLOAD_INVALID', 'Send the picture or clip itself as the body, with its content type')
      if (query.capturedAt !== undefined && !isTime(query.capturedAt))
        throw new Fault('UPLOAD_INVALID', `capturedAt ${query.capturedAt} is no time; times look like 2026-11-24T10:00:00.000Z`)
      const capturedAt = query.capturedAt === undefined ? Date.now() : Date.parse(query.capturedAt)
      if (capturedAt < earliest || capturedAt > Date.now() + 86_400_000)
        throw new Fault('UPLOAD_INVALID', `capturedAt ${query.capturedAt} lies before the year 2000 or more than a day ahead`)
      const isVideo = headers['content-type']?.startsWith('video/') ?? false
      const accepted = await ingest({ source: query.source, siteId: query.site, bytes: body, capturedAt, idempotencyKey: headers['idempotency-key'], isVideo }, tools)
      return reply.code(accepted.repeated ? 200 : 201).send(accepted)
    },
  )
  lifetime.run(
    'open uploads',
    async (signal) => {
      while (!signal.aborted) {
        await sleep(5_000, undefined, { signal }).catch(() => {})
        const announced = signal.aborted ? 0 : await announceOpen(tools).catch(() => 0)
        if (announced > 0) log.info({ announced }, 'uploads announced that a crash had left open')
      }
    },
    fail,
  )
  await listen(app, config, lifetime)
})
