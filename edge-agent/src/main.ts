/** Starts one agent. */
import { openHealth } from '@frameloop/kit/http'
import { openKafka } from '@frameloop/kit/kafka'
import { Gauge } from '@frameloop/kit/metrics'
import { openObjectStore } from '@frameloop/kit/object-store'
import { retry } from '@frameloop/kit/retry'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { capture, captureMetrics, readCameras } from './agent.ts'
import { runAnnouncer } from './announce/announcer.ts'
import { AgentSettings } from './config.ts'
import { runReporter } from './report.ts'
import { openSimulatorControl } from './simulator-control.ts'
import { Spool } from './spool/spool.ts'
import { runUploader } from './upload/uploader.ts'

await runProcess('agent', AgentSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const cameras = readCameras(config.cameras)
  const spool = lifetime.own('spool', await Spool.open({ folder: config.spoolFolder, capacity: config.spoolCapacityBytes, segmentBytes: 16_000_000 }, log), (open) => open.close())
  const store = lifetime.own('object store', openObjectStore(config), (open) => open.close())
  const codec = openCodec(openRegistry(config.schemaRegistryUrl))
  const producer = openKafka(config.kafkaBrokers, config.agentId, log).producer()
  lifetime.own('producer', producer, (open) => open.disconnect())
  const identity = { agentId: config.agentId, siteId: config.siteId, bucketPrefix: config.bucketPrefix }
  const ofCapture = captureMetrics(metrics)
  new Gauge({
    name: 'frameloop_agent_spool_bytes',
    help: 'Bytes waiting in the spool',
    registers: [metrics],
    collect() {
      this.set(spool.size.bytes)
    },
  })

  // the cloud may be away for days: capturing does not wait for it
  const connected = retry(
    () => producer.connect(),
    { backoff: { first: 500, cap: 10_000 }, isTransient: () => true, onRetry: (thrown, attempt) => attempt === 1 && log.warn({ err: thrown }, 'Kafka is not there yet') },
    lifetime.signal,
  )
  connected.catch(() => {})
  lifetime.run('uploader', (signal) => runUploader(spool, store, identity, config.uploadConcurrency, log, signal), fail)
  lifetime.run('announcer', (signal) => connected.then(() => runAnnouncer(spool, producer, codec, identity, log, signal)), fail)
  lifetime.run('reporter', (signal) => connected.then(() => runReporter(cameras, spool, producer, codec, identity, log, signal)), fail)
  for (const camera of cameras)
    lifetime.run(
      `camera ${camera.settings.cameraId}`,
      (signal) => capture(camera, { spool, log, metrics, ffmpeg: config.ffmpegPath, ffprobe: config.ffprobePath }, ofCapture, signal),
      fail,
    )
  await openHealth({ name: 'agent', metrics, notReady: () => ({}), routes: openSimulatorControl(cameras, log) }, config, lifetime)
})
