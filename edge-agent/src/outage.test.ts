/** An hour without a broker, in simulated time: frames carry the times of that hour, and the broker refuses until it is over. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Producer } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import { openCodec } from '@frameloop/schemas/codec'
import { schemaTexts } from '@frameloop/schemas/events'
import { topics } from '@frameloop/schemas/topics'
import { expect, test } from 'vitest'
import { runAnnouncer } from './announce/announcer.ts'
import type { FrameHead } from './spool/contents.ts'
import { Spool } from './spool/spool.ts'
import { runUploader, type Troubles } from './upload/uploader.ts'

const hour = 3_600_000
const interval = 5_000
const perCamera = hour / interval
const log = openLog('test', 'silent')
const cameras = ['door', 'gate']

const aHead = (cameraId: string, seq: number, capturedAt: number): FrameHead => ({
  ...{ cameraId, epoch: 'e'.repeat(32), seq, kind: 'image', extension: 'jpg', capturedAt, mediaOffsetUs: null, width: 1, height: 1 },
  ...{ sourceName: '', sha256: '0'.repeat(64), traceparent: '' },
})

test('a broker that is gone for an hour: every frame of it is announced afterwards, once and in order, and it is said why they wait', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-outage-'))
  const spool = await Spool.open({ folder, capacity: 100_000_000, segmentBytes: 1_000_000 }, log)
  const codec = openCodec({ register: async () => 1, schemaOf: async () => schemaTexts.MediaCaptured })
  const now = Date.now()
  for (let first = 0; first < perCamera; first += 60) {
    const some = Array.from({ length: 60 }, (_, at) => first + at)
    await Promise.all(some.flatMap((at) => cameras.map((camera) => spool.append(aHead(camera, at + 1, now - hour + at * interval), Buffer.alloc(200, at)))))
  }
  let isGone = true
  let refusals = 0
  const came: { readonly topic: string; readonly camera: string; readonly seq: number }[] = []
  const producer = {
    async send({ topic, messages }) {
      if (isGone) {
        refusals += 1
        throw new Error('Connection error: connect ECONNREFUSED')
      }
      for (const { value } of messages) {
        const { cameraId, seq } = await codec.decode('MediaCaptured', value as Buffer)
        came.push({ topic, camera: cameraId, seq })
      }
      return []
    },
  } as Pick<Producer, 'send'> as Producer
  const store = { putOnce: async ({ key }: { readonly key: string }) => ({ bucket: '', key, sha256: '', bytes: 0, versionId: '' }) } as Pick<ObjectStore, 'putOnce'> as ObjectStore
  const troubles: Troubles = { uploads: new Map(), announcements: '' }
  const identity = { agentId: 'a', siteId: 's', bucketPrefix: 'b' }
  const stop = new AbortController()
  const running = [
    runUploader(spool, store, identity, () => ({ concurrency: 16, limit: 0, windows: [], outside: 'live' }), troubles, log, stop.signal),
    runAnnouncer(spool, producer, codec, identity, troubles, log, stop.signal),
  ]
  try {
    expect(await until(() => refusals >= 3 || undefined, 30_000, 20)).toBe(true)
    expect(troubles.announcements).toContain('ECONNREFUSED')
    expect(spool.size.frames).toBe(cameras.length * perCamera)
    isGone = false
    expect(await until(() => spool.size.frames === 0 || undefined, 60_000, 50), `${spool.size.frames} frames wait`).toBe(true)
  } finally {
    stop.abort()
    await Promise.all(running)
    await spool.close()
    rmSync(folder, { recursive: true, force: true })
  }
  expect(troubles.announcements).toBe('')
  for (const camera of cameras) {
    const own = came.filter((record) => record.camera === camera)
    const laneOf = (topic: string): number[] => own.filter((record) => record.topic === topic).map(({ seq }) => seq)
    const [live, backlog] = [laneOf(topics.mediaCaptured.name), laneOf(topics.mediaBackfill.name)]
    for (const lane of [live, backlog]) expect(lane).toEqual([...lane].sort((a, b) => a - b))
    expect([...backlog, ...live]).toEqual(Array.from({ length: perCamera }, (_, at) => at + 1))
  }
})
