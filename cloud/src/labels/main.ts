/** Starts the labels API: labels and zones in, labels.recorded out through the outbox. */

import { listOf } from '@frameloop/kit/config'
import { Fault } from '@frameloop/kit/fault'
import { listen, openApi } from '@frameloop/kit/http'
import { openKafka } from '@frameloop/kit/kafka'
import { databaseNotReady, openPool } from '@frameloop/kit/postgres'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { namePattern } from '@frameloop/schemas/ids'
import { openRegistry } from '@frameloop/schemas/registry'
import type { ZoneShape } from '@frameloop/stream-processors/features/prepare'
import Type from 'typebox'
import { ApiSettings } from '../config.ts'
import { runOutbox } from '../outbox.ts'
import { type NewLabel, putZones, storeLabels } from './labels.ts'

const Name = Type.String({ pattern: namePattern })
const LabelsBody = Type.Object({
  source: Type.String({ minLength: 1, maxLength: 200, description: 'who says so' }),
  asOf: Type.Optional(Type.String({ format: 'date-time', description: 'recorded time; now when absent' })),
  labels: Type.Array(
    Type.Object({
      cameraId: Name,
      zone: Name,
      task: Name,
      label: Name,
      frameId: Type.Optional(Type.String()),
      mediaOffsetMs: Type.Optional(Type.Number({ minimum: 0, maximum: 1e12 })),
      frameAt: Type.Optional(Type.String()),
    }),
    { minItems: 1, maxItems: 5_000 },
  ),
})
const whole = Type.Integer({ minimum: 0 })
const size = Type.Integer({ minimum: 1 })
const ZonesBody = Type.Object({
  zones: Type.Array(Type.Object({ zone: Name, x: whole, y: whole, width: size, height: size, pictureWidth: size, pictureHeight: size }), { minItems: 1 }),
})

await runProcess('labels', ApiSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const pool = lifetime.own('pool', openPool(config.databaseUrl, 'labels'), (open) => open.end())
  const producer = openKafka(config.kafkaBrokers, 'labels', log).producer()
  await producer.connect()
  lifetime.own('producer', producer, (open) => open.disconnect())
  const codec = openCodec(openRegistry(config.schemaRegistryUrl))
  lifetime.run('outbox', (signal) => runOutbox(pool, producer, codec, log, signal), fail)
  const notReady = () => databaseNotReady(pool)
  const app = await openApi(
    { name: 'labels', metrics, notReady },
    { title: 'frameloop labels', bodyLimit: 4_000_000, log, host: config.host, allowedOrigins: listOf(config.allowedOrigins), allowedHosts: listOf(config.allowedHosts) },
  )

  app.post<{ Body: { source: string; asOf?: string; labels: NewLabel[] } }>('/v1/labels', { schema: { summary: 'Store labels', body: LabelsBody } }, async ({ body }) =>
    storeLabels(pool, body.labels, body.source, body.asOf ? new Date(body.asOf) : new Date()),
  )

  app.put<{ Params: { cameraId: string; task: string }; Body: { zones: ZoneShape[] } }>(
    '/v1/cameras/:cameraId/tasks/:task/zones',
    { schema: { summary: 'Set the zones of a camera for a task', params: Type.Object({ cameraId: Name, task: Name }), body: ZonesBody } },
    async ({ params, body }) => {
      for (const { zone, x, y, width, height, pictureWidth, pictureHeight } of body.zones) {
        if (x + width > pictureWidth || y + height > pictureHeight)
          throw new Fault('ZONES_INVALID', `Zone ${zone} (${width}x${height} at ${x},${y}) reaches out of its picture of ${pictureWidth}x${pictureHeight}`)
      }
      await putZones(pool, params.cameraId, params.task, body.zones)
      return { cameraId: params.cameraId, task: params.task, zones: body.zones.length }
    },
  )
  await listen(app, config, lifetime)
})
