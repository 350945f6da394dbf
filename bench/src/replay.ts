/**
 * A past range on a side topic again. Events: an hour's worth of records of 64 cameras at 5 frames a second, against real time.
 * Frames: prepared in another way, against decoding and preparing alone, on both cores, with the bytes in memory.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { simulatedZones } from '@frameloop/deploy/demo'
import { build } from '@frameloop/deploy/home'
import { putZoneFile } from '@frameloop/deploy/label-file'
import { sha256Hex } from '@frameloop/kit/digest'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import type { FrameExtracted } from '@frameloop/schemas/events'
import { frameIdOf, mediaIdOf, mintEpoch } from '@frameloop/schemas/ids'
import { bucketName, rawKey } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { readBounds } from '@frameloop/stream-processors/chain/kafka-bus'
import { inOrder } from '@frameloop/stream-processors/chain/run-stage'
import { selectZones } from '@frameloop/stream-processors/features/zones'
import { openPixelThreads } from '@frameloop/stream-processors/pixels/pixel-threads'
import { manifestOf, type Replay, type ReplayRequest, runReplay } from '@frameloop/stream-processors/replay/replay'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { aValidated } from './events.ts'
import { median } from './measure.ts'
import { enlargedFrames } from './pictures.ts'

const events = 200_000
const frames = 2_400
const rounds = 3
/** 64 cameras at 5 frames a second. */
const perSecond = 64 * 5

export async function benchReplay(say: (text: string) => void): Promise<object> {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-replay-'))
  await using home = openOwnHome()
  const { jpegs: pictures } = enlargedFrames(folder, 30, 24)
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const brokers = env['KAFKA_BROKERS'] ?? ''
  const kafka = openKafka(brokers, 'bench', openLog('bench', 'error'))
  const [producer, admin, store, pool] = [kafka.producer(), kafka.admin(), objectStoreOf(env), openPool(env['DATABASE_URL'] ?? '', 'bench', 4)]
  const pixels = openPixelThreads(undefined, new URL('pixel-thread.mjs', `file://${build}/`))
  try {
    await Promise.all([producer.connect(), admin.connect()])
    const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
    const create = (topic: string) => createTopics(admin, [{ topic, numPartitions: 6, configEntries: [{ name: 'max.message.bytes', value: '8000000' }] }])
    const log = openLog('bench', 'error')
    const tools = { pool, brokers, store, codec, bucketPrefix: 'frameloop', log, pixels, onProgress: () => {} }
    const signal = new AbortController().signal
    /** Records a second, and how long the manifest took. */
    const replay = async (name: string, request: ReplayRequest, source: string, expected: number): Promise<{ readonly perSecond: number; readonly manifestSeconds: number }> => {
      const into = `${name}.into`
      await create(into)
      const ranges = await readBounds(brokers, 'frameloop.bench', [source])
      const one: Replay = { id: name, into, request, ranges: ranges.map((range) => ({ ...range, from: 0 })) }
      const since = performance.now()
      await runReplay(one, tools, signal)
      const seconds = (performance.now() - since) / 1000
      const before = performance.now()
      const { records } = await manifestOf(one, [], brokers, signal)
      if (records !== expected) throw new Error(`${records} of ${expected} records were replayed`)
      const manifestSeconds = (performance.now() - before) / 1000
      await admin.deleteTopics({ topics: [into] })
      return { perSecond: records / seconds, manifestSeconds }
    }
    const always = { from: 0, to: Date.now() + 86_400_000_000, cameras: null, task: null, speed: null, preprocessing: null }

    // a topic beside the chain: what is measured is reading and copying, not what the chain does with so many events
    const source = 'bench.replay.events'
    await create(source)
    for (let at = 0; at < events; at += 2_000) {
      const messages = await Promise.all(
        Array.from({ length: 2_000 }, async (_, n) => {
          const event = { ...aValidated(at + n), cameraId: `camera-${(at + n) % 64}` }
          return recordOf(codec, topics.mediaValidated, event, { key: event.cameraId, id: event.mediaId, time: event.capturedAt, source: 'bench', traceparent: newTraceparent() })
        }),
      )
      await producer.send({ topic: source, acks: -1, messages })
    }
    say(`${events} events of 64 cameras at 5 a second: ${Math.round(events / perSecond)} s of real time`)
    const ofEvents: { readonly perSecond: number; readonly manifestSeconds: number }[] = []
    for (let round = 0; round <= rounds; round += 1) {
      const found = await replay(`bench-events-${round}`, { ...always, topic: source }, source, events)
      if (round > 0) ofEvents.push(found)
      say(
        `events, round ${round}: ${Math.round(found.perSecond)} a second, ${(found.perSecond / perSecond).toFixed(0)} x real time; its manifest ${found.manifestSeconds.toFixed(1)} s`,
      )
    }
    const toRealTime = ofEvents.map((found) => found.perSecond / perSecond).sort((a, b) => a - b)

    // frames: announced as extracted, so that the live chain prepares them once in its own way
    const cameraId = 'bench-camera'
    await putZoneFile(stack.state.health['labels'] ?? '', cameraId, 'occupancy', simulatedZones)
    const epoch = mintEpoch()
    const keys: string[] = []
    const messages = await inOrder(
      Array.from({ length: frames }, (_, at) => at),
      12,
      async (at) => {
        const mediaId = mediaIdOf('bench', cameraId, epoch, at + 1)
        const frameAt = Date.now() + at
        const body = pictures[at % pictures.length] as Buffer
        const place = { bucket: bucketName('frameloop', 'raw'), key: rawKey({ siteId: 'bench', cameraId, mediaId, capturedAt: frameAt, extension: 'jpg' }) }
        keys[at] = place.key
        await store.putOnce({ ...place, body, contentType: 'image/jpeg' })
        const object = { ...place, sha256: sha256Hex(body), bytes: body.length, versionId: '', contentType: 'image/jpeg' }
        const frameId = frameIdOf(mediaId, 0)
        const event: FrameExtracted = {
          ...{ siteId: 'bench', cameraId, mediaId, epoch, seq: at + 1, lane: 'live', source: 'camera', frameId, frameAt, mediaOffsetUs: null },
          ...{ index: 0, frameCount: 1, ptsUs: 0, object, width: 1920, height: 1080, motion: null, arrivedAt: 0, validatedAt: 0, extractedAt: 0, stageVersion: '' },
        }
        return recordOf(codec, topics.framesExtracted, event, { key: cameraId, id: frameId, time: frameAt, source: 'bench', traceparent: newTraceparent() })
      },
    )
    await producer.send({ topic: topics.framesExtracted.name, acks: -1, messages })
    const prepared = await until(
      async () => (await pool.query<{ n: number }>('select count(*)::int as n from features where camera_id = $1', [cameraId])).rows[0]?.n === frames || undefined,
      120_000,
      200,
    )
    if (!prepared) throw new Error('the chain did not prepare the frames within two minutes')
    const preprocessing = { width: 96, height: 96, filters: ['equalise'] as const }
    const zones = ((await selectZones(pool)).get(cameraId) ?? []).map((zone) => ({ ...zone, preprocessing }))
    const bare = async (picture: (at: number) => Promise<Buffer> | Buffer): Promise<number> => {
      const since = performance.now()
      const { length } = await inOrder(
        Array.from({ length: frames }, (_, at) => at),
        12,
        async (at) => pixels.prepare(await picture(at), zones, new Map()),
      )
      return length / ((performance.now() - since) / 1000)
    }
    const [ofFrames, ofBare, ofFetched]: [number[], number[], number[]] = [[], [], []]
    for (let round = 0; round <= rounds; round += 1) {
      const ceiling = await bare((at) => pictures[at % pictures.length] as Buffer)
      // the object store works on the same cores: what is left when each picture comes from it
      const fetched = await bare((at) => store.get(bucketName('frameloop', 'raw'), keys[at] ?? ''))
      const asked = { ...always, topic: topics.featuresPrepared.name, preprocessing, cameras: [cameraId] }
      const found = await replay(`bench-frames-${round}`, asked, topics.framesExtracted.name, frames)
      if (round > 0) {
        ofFrames.push(found.perSecond)
        ofBare.push(ceiling)
        ofFetched.push(fetched)
      }
      say(
        `frames, round ${round}: ${Math.round(found.perSecond)} a second; decoding and preparing alone ${Math.round(ceiling)}, with each picture from the store ${Math.round(fetched)}`,
      )
    }
    const toBare = ofFrames.map((value, at) => value / (ofBare[at] ?? 1)).sort((a, b) => a - b)
    const toFetched = ofFrames.map((value, at) => value / (ofFetched[at] ?? 1)).sort((a, b) => a - b)
    say(`events: ${median(toRealTime).toFixed(0)} x real time (${toRealTime[0]?.toFixed(0)} to ${toRealTime.at(-1)?.toFixed(0)})`)
    say(
      `frames: ${median(toBare).toFixed(2)} x decoding alone (${toBare[0]?.toFixed(2)} to ${toBare.at(-1)?.toFixed(2)}), ${median(toFetched).toFixed(2)} x getting and decoding (${toFetched[0]?.toFixed(2)} to ${toFetched.at(-1)?.toFixed(2)})`,
    )
    return { events: { count: events, found: ofEvents, toRealTime }, frames: { count: frames, replay: ofFrames, bare: ofBare, fetched: ofFetched, toBare, toFetched } }
  } finally {
    await pixels.close()
    store.close()
    await pool.end()
    await Promise.all([producer.disconnect(), admin.disconnect()])
    await stack.end('SIGTERM')
    rmSync(folder, { recursive: true, force: true })
  }
}
