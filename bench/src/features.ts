/**
 * Frames → prepared zones, from Kafka to Kafka with the picture from S3 and the pixels back to it: the features stage, with
 * transactions, against the same in Python (`rivals/features.py`, at least once), plain and tuned with two processes.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { simulatedZones } from '@frameloop/deploy/demo'
import { putZoneFile } from '@frameloop/deploy/label-file'
import { sha256Hex } from '@frameloop/kit/digest'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import { type FrameExtracted, schemaTexts } from '@frameloop/schemas/events'
import { frameIdOf, mediaIdOf, mintEpoch } from '@frameloop/schemas/ids'
import { bucketName, rawKey } from '@frameloop/schemas/object-keys'
import { openRegistry } from '@frameloop/schemas/registry'
import { subjectOf, topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { tail } from '@frameloop/stream-processors/chain/kafka-bus'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { cpuMs, decibels, median } from './measure.ts'
import { enlargedFrames } from './pictures.ts'
import { type Rival, rivalPython, startRival } from './rivals.ts'

const frames = 600
const rounds = 5
const cameras = ['north', 'east', 'south', 'west']
const ways = ['frameloop', 'plain', 'tuned'] as const
type Way = (typeof ways)[number]

export async function benchFeatures(say: (text: string) => void): Promise<object> {
  const python = rivalPython(say)
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-features-'))
  await using home = openOwnHome()
  const { jpegs: pictures } = enlargedFrames(folder, 30, 24)
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const brokers = env['KAFKA_BROKERS'] ?? ''
  const kafka = openKafka(brokers, 'bench', openLog('bench', 'error'))
  const [producer, admin, store] = [kafka.producer(), kafka.admin(), objectStoreOf(env)]
  const rivals: Rival[] = []
  try {
    await Promise.all([producer.connect(), admin.connect()])
    const registry = openRegistry(env['SCHEMA_REGISTRY_URL'] ?? '')
    const codec = openCodec(registry)
    const featuresId = await registry.register(subjectOf(topics.featuresPrepared.name), schemaTexts.FeaturesPrepared)
    for (const cameraId of cameras) await putZoneFile(stack.state.health['labels'] ?? '', cameraId, 'occupancy', simulatedZones)
    const names = { plain: { input: 'bench.plain.in', output: 'bench.plain.out' }, tuned: { input: 'bench.tuned.in', output: 'bench.tuned.out' } }
    await createTopics(
      admin,
      Object.values(names).flatMap(({ input, output }) => [input, output].map((topic) => ({ topic, numPartitions: 6 }))),
    )
    const rival = async (way: 'plain' | 'tuned', processes: number): Promise<Rival[]> => {
      const job = {
        way,
        ...names[way],
        brokers,
        group: `bench.${way}`,
        s3: env['S3_ENDPOINT'],
        bucket: bucketName('frameloop', 'processed'),
        prefix: `bench/${way}`,
        // packed in the order of their names, as ours are
        zones: [...simulatedZones].sort((a, b) => (a.zone < b.zone ? -1 : 1)),
        width: 64,
        height: 64,
        // the same as ours: the strongest that leaves every zone its size
        scale: 4,
        frameSchema: schemaTexts.FrameExtracted,
        featuresSchema: schemaTexts.FeaturesPrepared,
        featuresId,
      }
      const started = Array.from({ length: processes }, () =>
        startRival(python, 'features.py', [], {
          JOB: JSON.stringify(job),
          AWS_ACCESS_KEY_ID: env['AWS_ACCESS_KEY_ID'] ?? '',
          AWS_SECRET_ACCESS_KEY: env['AWS_SECRET_ACCESS_KEY'] ?? '',
        }),
      )
      rivals.push(...started)
      // each says how many partitions it has, again after every rebalance
      const held = started.map(() => 0)
      started.forEach((one, at) => {
        void (async () => {
          for (;;) held[at] = (await one.next<{ assigned: number }>()).assigned
        })().catch(() => {})
      })
      const isShared = await until(async () => (held.every((count) => count === 6 / processes) ? true : undefined), 60_000, 100)
      if (!isShared) throw new Error(`the ${way} rival did not get its partitions: ${held.join(', ')}`)
      return started
    }
    const running: Readonly<Record<Way, readonly Rival[]>> = { frameloop: [], plain: await rival('plain', 1), tuned: await rival('tuned', 2) }
    const inputs: Readonly<Record<Way, string>> = { frameloop: topics.framesExtracted.name, plain: names.plain.input, tuned: names.tuned.input }
    const outputs: Readonly<Record<Way, string>> = { frameloop: topics.featuresPrepared.name, plain: names.plain.output, tuned: names.tuned.output }

    const events = await Promise.all(
      Array.from({ length: frames }, async (_, at): Promise<FrameExtracted> => {
        const cameraId = cameras[at % cameras.length] ?? ''
        const epoch = mintEpoch()
        const body = pictures[at % pictures.length] as Buffer
        const mediaId = mediaIdOf('bench', cameraId, epoch, 1)
        const place = { bucket: bucketName('frameloop', 'raw'), key: rawKey({ siteId: 'bench', cameraId, mediaId, capturedAt: Date.now(), extension: 'jpg' }) }
        await store.putOnce({ ...place, body, contentType: 'image/jpeg' })
        const object = { ...place, sha256: sha256Hex(body), bytes: body.length, versionId: '', contentType: 'image/jpeg' }
        const of = { siteId: 'bench', cameraId, mediaId, epoch, seq: 1, lane: 'live', source: 'camera' }
        return {
          ...of,
          frameId: frameIdOf(mediaId, 0),
          frameAt: Date.now(),
          mediaOffsetUs: null,
          index: 0,
          frameCount: 1,
          ptsUs: 0,
          object,
          width: 1920,
          height: 1080,
          motion: null,
          ...{ arrivedAt: 0, validatedAt: 0, extractedAt: 0 },
          stageVersion: '',
        }
      }),
    )
    say(
      `${frames} frames of 1920x1080, ${Math.round(pictures.reduce((sum, { length }) => sum + length, 0) / pictures.length / 1000)} kB each, ${simulatedZones.length} zones to 64x64, ${cameras.length} cameras`,
    )

    const pixelsOf = new Map<Way, Map<string, Uint8Array>>()
    /** Frames a second and CPU ms a frame. */
    const run = async (way: Way, round: number): Promise<{ speed: number; cpu: number }> => {
      const messages = await Promise.all(
        events.map((event, at) =>
          // a frame prepared before would find its object there: every round has frames of its own
          recordOf(
            codec,
            topics.framesExtracted,
            { ...event, frameId: frameIdOf(event.mediaId, round * frames + at) },
            { key: event.cameraId, id: event.frameId, time: event.frameAt, source: 'bench', traceparent: newTraceparent() },
          ),
        ),
      )
      const pids = way === 'frameloop' ? [stack.pidOf('features')] : running[way].map(({ process: child }) => child.pid ?? 0)
      const cpu = (): number => pids.reduce((sum, pid) => sum + cpuMs(pid), 0)
      const limit = AbortSignal.timeout(120_000)
      const records = tail(brokers, 'frameloop.bench', outputs[way], 'end', limit)
      // it stands at the end of the topic now
      await records.next()
      const before = cpu()
      const since = performance.now()
      await producer.send({ topic: inputs[way], acks: -1, messages })
      const got = new Map<string, Uint8Array>()
      for await (const record of records) {
        if (!record) continue
        const { frameId, pixels } = await codec.decode('FeaturesPrepared', record.value)
        got.set(frameId, pixels ?? Buffer.alloc(0))
        if (got.size === frames) break
      }
      if (got.size < frames) throw new Error(`${way} prepared ${got.size} of ${frames} frames in two minutes`)
      const seconds = (performance.now() - since) / 1000
      const spent = cpu() - before
      pixelsOf.set(way, got)
      return { speed: frames / seconds, cpu: spent / frames }
    }
    const found: Record<Way, { speed: number[]; cpu: number[] }> = { frameloop: { speed: [], cpu: [] }, plain: { speed: [], cpu: [] }, tuned: { speed: [], cpu: [] } }
    for (let round = 0; round <= rounds; round += 1) {
      for (const way of round % 2 === 0 ? ways : [...ways].reverse()) {
        const { speed, cpu } = await run(way, round)
        // the first round warms up
        if (round === 0) continue
        found[way].speed.push(speed)
        found[way].cpu.push(cpu)
      }
      if (round === 0) {
        for (const way of ['plain', 'tuned'] as const) {
          const least = Math.min(...[...(pixelsOf.get('frameloop') ?? [])].map(([id, pixels]) => decibels(pixels, pixelsOf.get(way)?.get(id) ?? Buffer.alloc(0))))
          say(`least PSNR between our pixels and those of ${way}: ${least.toFixed(1)} dB`)
          // the full decode is the reference; the tuned one cuts zones at whole pixels of its small picture and is further off
          if (!(least > (way === 'plain' ? 35 : 25))) throw new Error('the outputs differ too much: the comparison is void')
        }
      } else
        say(
          `round ${round} of ${rounds}: ${ways.map((way) => `${way} ${Math.round(found[way].speed.at(-1) ?? 0)} frames a second, ${(found[way].cpu.at(-1) ?? 0).toFixed(1)} CPU ms a frame`).join('; ')}`,
        )
    }
    const ratios = (way: Way): number[] => found.frameloop.speed.map((speed, at) => speed / (found[way].speed[at] ?? 1)).sort((a, b) => a - b)
    for (const way of ['plain', 'tuned'] as const) say(`${median(ratios(way)).toFixed(2)} x Python ${way} (${ratios(way)[0]?.toFixed(2)} to ${ratios(way).at(-1)?.toFixed(2)})`)
    return { frames, found, toPlain: ratios('plain'), toTuned: ratios('tuned') }
  } finally {
    await Promise.all(rivals.map((one) => one.end()))
    store.close()
    await Promise.all([producer.disconnect(), admin.disconnect()])
    await stack.end('SIGTERM')
    rmSync(folder, { recursive: true, force: true })
  }
}
