/**
 * Frames per second through validate → extract → features, and what a frame costs. The pictures are stored before the clock
 * starts; then all of them are announced at once, and the clock stops with the last record of `features.prepared`.
 */

import { simulatedZones } from '@frameloop/deploy/demo'
import { putZoneFile } from '@frameloop/deploy/label-file'
import { paintScene, sceneHeight, sceneWidth } from '@frameloop/edge-agent/capture/scene'
import { sha256Hex } from '@frameloop/kit/digest'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { mediaIdOf, mintEpoch } from '@frameloop/schemas/ids'
import { bucketName, rawKey } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { inOrder } from '@frameloop/stream-processors/chain/run-stage'
import sharp from 'sharp'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { cpuMs, median, peakMB } from './measure.ts'

const framesPerRound = 2_000
const rounds = 3
const watched = ['validate', 'extract', 'features', 'catalog', 'kafka', 's3', 'postgres'] as const
const ownStages = ['validate', 'extract', 'features', 'catalog'] as const
type Watched = (typeof watched)[number]

interface Round {
  readonly cameras: number
  readonly framesPerSecond: number
  readonly cataloguedSeconds: number
  /** CPU ms per frame, by process. */
  readonly cpuMsPerFrame: Readonly<Record<Watched, number>>
  /** Most resident memory so far, MB, by process. */
  readonly peakMB: Readonly<Record<Watched, number>>
}

interface ChainBench {
  readonly about: string
  /** All frames announced at once, spread over so many cameras. */
  round(cameras: number): Promise<Round>
}

async function withChain<Result>(act: (bench: ChainBench) => Promise<Result>): Promise<Result> {
  await using home = openOwnHome()
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const pool = openPool(env['DATABASE_URL'] ?? '', 'bench', 2)
  const store = objectStoreOf(env)
  const producer = openKafka(env['KAFKA_BROKERS'] ?? '', 'bench', openLog('bench', 'error')).producer()
  try {
    await producer.connect()
    const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
    const pictures = await Promise.all(
      Array.from({ length: framesPerRound }, (_, at) =>
        sharp(paintScene(1 + (at % 4), at * 200, 'day'), { raw: { width: sceneWidth, height: sceneHeight, channels: 3 } })
          .jpeg({ quality: 80 })
          .toBuffer(),
      ),
    )
    const bytes = pictures.reduce((sum, picture) => sum + picture.length, 0) / pictures.length
    const known = new Set<string>()
    const round = async (count: number): Promise<Round> => {
      const cameras = Array.from({ length: count }, (_, at) => `bench-${at + 1}`)
      for (const cameraId of cameras.filter((name) => !known.has(name))) {
        await putZoneFile(stack.state.health['labels'] ?? '', cameraId, 'occupancy', simulatedZones)
        known.add(cameraId)
      }
      const epochs = new Map(cameras.map((cameraId) => [cameraId, mintEpoch()]))
      const events = await inOrder(pictures, 16, async (picture): Promise<MediaCaptured> => {
        const index = pictures.indexOf(picture)
        const cameraId = cameras[index % cameras.length] ?? ''
        const epoch = epochs.get(cameraId) ?? ''
        const seq = 1 + Math.floor(index / cameras.length)
        const mediaId = mediaIdOf('bench', cameraId, epoch, seq)
        const capturedAt = Date.now()
        const place = { bucket: bucketName('frameloop', 'raw'), key: rawKey({ siteId: 'default', cameraId, mediaId, capturedAt, extension: 'jpg' }) }
        const sha256 = sha256Hex(picture)
        const { versionId } = await store.putOnce({ ...place, body: picture, sha256, contentType: 'image/jpeg', metadata: { 'media-id': mediaId } })
        const object = { ...place, sha256, bytes: picture.length, versionId: versionId ?? '', contentType: 'image/jpeg' }
        const of = { siteId: 'default', cameraId, mediaId, epoch, seq, lane: 'live', source: 'camera', kind: 'image', agentId: 'bench', capturedAt, mediaOffsetUs: null }
        return { ...of, object, width: sceneWidth, height: sceneHeight, motion: null, sourceName: 'bench' }
      })
      const messages = await Promise.all(
        events.map((event) =>
          recordOf(codec, topics.mediaCaptured, event, { key: event.cameraId, id: event.mediaId, time: event.capturedAt, source: 'bench', traceparent: newTraceparent() }),
        ),
      )
      const pids = new Map(stack.processes.map(({ name, pid }) => [name, pid]))
      const before = watched.map((name) => cpuMs(pids.get(name) ?? 0))
      const since = Date.now()
      await producer.send({ topic: topics.mediaCaptured.name, acks: -1, messages })
      const ofRound = [...epochs.values()]
      const prepared = await until(
        async () => {
          const { rows } = await pool.query<{ n: number }>('select count(*)::int as n from features f join frames using (frame_id) where frames.epoch = any($1)', [ofRound])
          return rows[0]?.n === framesPerRound || undefined
        },
        180_000,
        100,
      )
      if (!prepared) throw new Error('not all frames were prepared within three minutes')
      // the catalog follows the chain: its own time for the last record is the chain's end
      const { rows } = await pool.query<{ last: Date; pictures: number }>(
        'select max(f.prepared_at) as last, count(distinct f.picture_sha256)::int as pictures from features f join frames using (frame_id) where frames.epoch = any($1)',
        [ofRound],
      )
      const cataloguedSeconds = (Date.now() - since) / 1000
      if (rows[0]?.pictures !== new Set(pictures.map((picture) => sha256Hex(picture))).size) throw new Error('the frames prepared are not those announced: the round is void')
      const seconds = ((rows[0]?.last.getTime() ?? 0) - since) / 1000
      const after = watched.map((name) => cpuMs(pids.get(name) ?? 0))
      const by = (figure: (name: Watched, at: number) => number) => Object.fromEntries(watched.map((name, at) => [name, figure(name, at)])) as Record<Watched, number>
      return {
        cameras: count,
        framesPerSecond: Math.round(framesPerRound / seconds),
        cataloguedSeconds,
        cpuMsPerFrame: by((_, at) => Math.round((((after[at] ?? 0) - (before[at] ?? 0)) / framesPerRound) * 100) / 100),
        peakMB: by((name) => peakMB(pids.get(name) ?? 0)),
      }
    }
    return await act({ about: `${framesPerRound} pictures of ${sceneWidth} × ${sceneHeight}, ${Math.round(bytes / 1000)} kB each, ${simulatedZones.length} zones`, round })
  } finally {
    store.close()
    await producer.disconnect()
    await pool.end()
    await stack.end('SIGTERM')
  }
}

const show = (figures: Readonly<Record<string, number>>): string =>
  Object.entries(figures)
    .map(([name, value]) => `${name} ${value}`)
    .join(', ')

export function benchChain(say: (text: string) => void): Promise<object> {
  return withChain(async ({ about, round }) => {
    say(`${about}, 4 cameras`)
    const found: Round[] = []
    for (let at = 1; at <= rounds; at += 1) {
      const one = await round(4)
      found.push(one)
      say(`round ${at} of ${rounds}: ${one.framesPerSecond} frames a second, catalogued after ${one.cataloguedSeconds.toFixed(1)} s; CPU ms per frame: ${show(one.cpuMsPerFrame)}`)
      say(`most resident so far, MB: ${show(one.peakMB)}`)
    }
    return { about, rounds: found }
  })
}

/** The same frames from one camera, and from up to 64: what a frame costs must not depend on how many cameras there are. */
export function benchCameras(say: (text: string) => void): Promise<object> {
  return withChain(async ({ about, round }) => {
    say(about)
    const counts = [1, 4, 16, 64]
    const found: Round[] = []
    // the first round warms up
    await round(4)
    for (let at = 0; at < rounds; at += 1) {
      for (const cameras of at % 2 === 0 ? counts : [...counts].reverse()) {
        const one = await round(cameras)
        found.push(one)
        say(`${String(cameras).padStart(2)} cameras: ${one.framesPerSecond} frames a second; CPU ms per frame: ${show(one.cpuMsPerFrame)}; MB: ${show(one.peakMB)}`)
      }
    }
    const costOf = (cameras: number): number =>
      median(found.filter((one) => one.cameras === cameras).map(({ cpuMsPerFrame }) => ownStages.reduce((sum, name) => sum + cpuMsPerFrame[name], 0)))
    const growth = Object.fromEntries(counts.map((cameras) => [cameras, costOf(cameras) / costOf(1)]))
    say(
      `CPU per frame of our stages against one camera: ${Object.entries(growth)
        .map(([cameras, ratio]) => `${cameras} cameras ${ratio.toFixed(2)} x`)
        .join(', ')}`,
    )
    return { about, rounds: found, growth }
  })
}
