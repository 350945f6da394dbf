/**
 * Frames per second through validate → extract → features, and what a frame costs. The pictures are stored before the clock
 * starts; then all of them are announced at once, and the clock stops with the last record of `features.prepared`.
 */

import { simulatedZones } from '@frameloop/deploy/demo'
import { putZoneFile } from '@frameloop/deploy/label-file'
import { paintScene, sceneHeight, sceneWidth } from '@frameloop/edge-agent/capture/scene'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf, sha256Hex } from '@frameloop/kit/object-store'
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { mediaIdOf, mintEpoch } from '@frameloop/schemas/ids'
import { bucketName, rawKey } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import sharp from 'sharp'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { cpuMs } from './measure.ts'

const cameras = ['north', 'east', 'south', 'west']
const framesPerRound = 2_000
const rounds = 3
const watched = ['validate', 'extract', 'features', 'catalog', 'kafka', 's3', 'postgres']

interface Round {
  readonly seconds: number
  readonly framesPerSecond: number
  /** CPU ms per frame, by process. */
  readonly cpuMsPerFrame: Readonly<Record<string, number>>
}

export async function benchChain(say: (text: string) => void): Promise<object> {
  using home = openOwnHome()
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const pool = openPool(env['DATABASE_URL'] ?? '', 'bench', 2)
  const store = objectStoreOf(env)
  const producer = openKafka(env['KAFKA_BROKERS'] ?? '', 'bench', openLog('bench', 'error')).producer()
  try {
    await producer.connect()
    const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
    for (const cameraId of cameras) await putZoneFile(stack.state.health['labels'] ?? '', cameraId, 'occupancy', simulatedZones)
    const pictures = await Promise.all(
      Array.from({ length: framesPerRound }, (_, at) =>
        sharp(paintScene(1 + (at % cameras.length), at * 200, 'day'), { raw: { width: sceneWidth, height: sceneHeight, channels: 3 } })
          .jpeg({ quality: 80 })
          .toBuffer(),
      ),
    )
    const bytes = pictures.reduce((sum, picture) => sum + picture.length, 0) / pictures.length
    say(`${framesPerRound} pictures of ${sceneWidth} × ${sceneHeight}, ${Math.round(bytes / 1000)} kB each, ${cameras.length} cameras, ${simulatedZones.length} zones`)
    const results: Round[] = []
    for (let at = 0; at < rounds; at += 1) {
      const epochs = new Map(cameras.map((cameraId) => [cameraId, mintEpoch()]))
      const events = await Promise.all(
        pictures.map(async (picture, index): Promise<MediaCaptured> => {
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
        }),
      )
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
      const cataloguedMs = Date.now() - since
      const seconds = ((rows[0]?.last.getTime() ?? 0) - since) / 1000
      const after = watched.map((name) => cpuMs(pids.get(name) ?? 0))
      const cpuMsPerFrame = Object.fromEntries(watched.map((name, index) => [name, Math.round((((after[index] ?? 0) - (before[index] ?? 0)) / framesPerRound) * 100) / 100]))
      results.push({ seconds: Math.round(seconds * 100) / 100, framesPerSecond: Math.round(framesPerRound / seconds), cpuMsPerFrame })
      say(
        `round ${at + 1} of ${rounds}: ${framesPerRound} frames prepared in ${seconds.toFixed(2)} s (${Math.round(framesPerRound / seconds)} per second), catalogued after ${(cataloguedMs / 1000).toFixed(1)} s; ${rows[0]?.pictures} different pictures; CPU ms per frame: ${Object.entries(
          cpuMsPerFrame,
        )
          .map(([name, ms]) => `${name} ${ms}`)
          .join(', ')}`,
      )
    }
    return {
      frames: framesPerRound,
      picture: `${sceneWidth}x${sceneHeight} JPEG, ${Math.round(bytes)} bytes`,
      cameras: cameras.length,
      zones: simulatedZones.length,
      rounds: results,
    }
  } finally {
    store.close()
    await producer.disconnect()
    await pool.end()
    await stack.end('SIGTERM')
  }
}
