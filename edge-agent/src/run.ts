/** The agent itself: each camera captures into the spool; the uploader and the announcer empty it; a report says how it goes. */
import { unwatchFile, watchFile } from 'node:fs'
import { join } from 'node:path'
import { rootMessage, toError } from '@frameloop/kit/fault'
import { type Answer, jsonAnswer, openHealth, textAnswer } from '@frameloop/kit/health'
import { openKafka } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { Gauge } from '@frameloop/kit/metrics'
import { retry } from '@frameloop/kit/retry'
import { runConfigured } from '@frameloop/kit/run-process'
import { Turns } from '@frameloop/kit/turns'
import { openCodec } from '@frameloop/schemas/codec'
import type { AgentDesired } from '@frameloop/schemas/events'
import { privateKeyOf } from '@frameloop/schemas/signature'
import { runAnnouncer } from './announce/announcer.ts'
import { type Camera, type CameraTools, cameraMetrics, openCamera, runCamera } from './camera.ts'
import { clockSkew } from './clock.ts'
import { type AgentSettings, bytesOf, readAgentConfig } from './config.ts'
import { clocksOf, kafkaOf, registryOf, storeOf } from './connections.ts'
import { type DesiredState, followDesired, fulfilWish, keptWish, settingsWith } from './desired.ts'
import { reportOf, runReporter } from './report.ts'
import { changeScene } from './simulator-control.ts'
import { Spool, type SpoolSettings } from './spool/spool.ts'
import { notifySystemd } from './systemd.ts'
import { runUploader, type Troubles } from './upload/uploader.ts'

const version = '0.1.0'
const clockInterval = 300_000

export function spoolOf({ spool }: AgentSettings): SpoolSettings {
  const capacity = bytesOf(spool.capacity)
  return { folder: spool.folder, capacity, keepFree: bytesOf(spool.keepFree), segmentBytes: Math.min(64_000_000, Math.max(1_000_000, capacity / 64)) }
}

/** The cameras that run, changed while they do: what is new is started, what is gone is stopped, what is as it was goes on. */
export class Cameras {
  readonly #running = new Map<string, { readonly camera: Camera; readonly stop: AbortController; readonly ended: Promise<void> }>()
  readonly #tools: CameraTools
  readonly #fail: (error: Error) => void

  constructor(tools: CameraTools, fail: (error: Error) => void) {
    this.#tools = tools
    this.#fail = fail
  }

  get all(): readonly Camera[] {
    return [...this.#running.values()].map(({ camera }) => camera)
  }

  find(id: string): Camera | undefined {
    return this.#running.get(id)?.camera
  }

  readonly #turns = new Turns<'cameras'>()

  /** One change after the other. Throws `SOURCE_UNREADABLE` before anything is changed. */
  become(wanted: AgentSettings['cameras']): Promise<void> {
    return this.#turns.take('cameras', () => this.#become(wanted))
  }

  async #become(wanted: AgentSettings['cameras']): Promise<void> {
    const isSame = (id: string): boolean => JSON.stringify(this.find(id)?.settings) === JSON.stringify(wanted.find((settings) => settings.id === id))
    const opened = wanted.filter(({ id }) => !isSame(id)).map((settings) => openCamera(settings, join(this.#tools.folder, 'memories')))
    const gone = [...this.#running.keys()].filter((id) => !isSame(id))
    await Promise.all(gone.map((id) => this.#stop(id)))
    for (const camera of opened) {
      const stop = new AbortController()
      const ended = runCamera(camera, this.#tools, stop.signal).catch((thrown: unknown) => {
        if (!stop.signal.aborted) this.#fail(toError(thrown))
      })
      this.#running.set(camera.settings.id, { camera, stop, ended })
    }
    if (opened.length + gone.length > 0) this.#tools.log.info({ started: opened.map(({ settings }) => settings.id), stopped: gone }, 'cameras set')
  }

  async #stop(id: string): Promise<void> {
    const running = this.#running.get(id)
    running?.stop.abort()
    await running?.ended
    // not before: its last clip still counts in its epoch, which is no ended one until then
    this.#running.delete(id)
  }

  async close(): Promise<void> {
    await Promise.all([...this.#running.keys()].map((id) => this.#stop(id)))
  }
}

/** Reads the file again when it changes; one that is wrong is told and has no effect. */
function followConfig(file: string, become: (settings: AgentSettings) => Promise<void>, desired: DesiredState, log: Log): () => void {
  const reread = async (): Promise<void> => {
    try {
      const settings = readAgentConfig(file)
      if (desired.version) log.warn({ file, version: desired.version }, 'the file has changed; its cameras and uploads have no effect while others are wanted')
      else await become(settings)
    } catch (thrown) {
      log.error({ err: thrown, file }, 'the changed configuration is wrong and was not taken over')
    }
  }
  watchFile(file, { interval: 1_000 }, (now, before) => {
    if (now.mtimeMs !== before.mtimeMs && now.size > 0) void reread()
  })
  return () => unwatchFile(file)
}

export async function runAgent(file: string): Promise<void> {
  await runConfigured(
    'agent',
    () => readAgentConfig(file),
    async ({ config, log, metrics, lifetime, fail }) => {
      const spool = lifetime.own('spool', await Spool.open({ ...spoolOf(config), signal: lifetime.signal }, log), (open) => open.close())
      const store = lifetime.own('object store', storeOf(config), (open) => open.close())
      const codec = openCodec(registryOf(config))
      const kafka = openKafka(kafkaOf(config), config.agent, log)
      const producer = kafka.producer()
      lifetime.own('producer', producer, (open) => open.disconnect())
      const { signingKey } = config
      const identity = { agentId: config.agent, siteId: config.site, bucketPrefix: config.s3.bucketPrefix, ...(signingKey ? { signingKey: privateKeyOf(signingKey) } : {}) }
      new Gauge({
        name: 'frameloop_agent_spool_bytes',
        help: 'Bytes waiting in the spool',
        registers: [metrics],
        collect() {
          this.set(spool.size.bytes)
        },
      })
      new Gauge({
        name: 'frameloop_agent_lag_seconds',
        help: 'Since the frame that waits longest in the spool was captured',
        registers: [metrics],
        collect() {
          this.set(spool.oldestAt > 0 ? Math.max(0, Date.now() - spool.oldestAt) / 1000 : 0)
        },
      })

      const troubles: Troubles = { uploads: new Map(), announcements: '' }
      // the cloud may be away for days: capturing does not wait for it
      const said = (thrown: unknown, attempt: number): void => {
        troubles.announcements = rootMessage(thrown)
        if (attempt === 1) log.warn({ err: thrown }, 'Kafka is not there yet')
      }
      const connected = retry(() => producer.connect(), { backoff: { first: 500, cap: 10_000 }, isTransient: () => true, onRetry: said }, lifetime.signal)
      connected.catch(() => {})
      const cameras = new Cameras({ spool, folder: config.spool.folder, log, ffmpeg: config.ffmpeg, ffprobe: config.ffprobe, metrics: cameraMetrics(metrics) }, fail)
      let uploads = config.uploads
      const become = async (settings: AgentSettings): Promise<void> => {
        await cameras.become(settings.cameras)
        uploads = settings.uploads
      }
      const desired: DesiredState = { version: '', error: '' }
      const wishes = {
        ...{ agentId: config.agent, folder: config.spool.folder, state: desired, log },
        fulfil: (wish: AgentDesired) => become(settingsWith(file, wish)),
      }
      const about = { agentId: config.agent, siteId: config.site, version, desired, clock: { skew: 0 }, troubles }
      lifetime.run('uploader', (signal) => runUploader(spool, store, identity, () => ({ ...uploads, limit: bytesOf(uploads.limit ?? '0 B') }), troubles, log, signal), fail)
      lifetime.run('announcer', (signal) => connected.then(() => runAnnouncer(spool, producer, codec, identity, troubles, log, signal)), fail)
      lifetime.run('reporter', (signal) => connected.then(() => runReporter(() => cameras.all, spool, producer, codec, about, log, signal)), fail)
      lifetime.own('cameras', cameras, (open) => open.close())
      const kept = keptWish(config.spool.folder)
      if (kept) await fulfilWish(kept, wishes)
      if (!desired.version) await cameras.become(config.cameras)
      const readClock = async (): Promise<void> => {
        about.clock.skew = (await clockSkew(clocksOf(config)))?.skew ?? about.clock.skew
      }
      void readClock()
      lifetime.own('clock', setInterval(readClock, clockInterval), clearInterval)
      lifetime.run(
        'wishes',
        (signal) => connected.then(() => followDesired(kafka, codec, wishes, signal)),
        (error) => log.error({ err: error }, 'wanted settings cannot be followed'),
      )
      lifetime.own('configuration', followConfig(file, become, desired, log), (stop) => stop())

      const routes = (method: string, path: string): Answer | undefined => {
        if (method === 'GET' && path === '/status') return jsonAnswer(200, { ...reportOf(cameras.all, spool, about, Date.now()), pid: process.pid })
        const capture = /^\/cameras\/([^/]+)\/capture$/.exec(path)
        if (method === 'POST' && capture) {
          const camera = cameras.find(capture[1] ?? '')
          if (!camera) return textAnswer(404, `there is no camera ${capture[1]}`)
          camera.wanted = true
          return textAnswer(202, `the next picture of ${capture[1]} is kept`)
        }
        const record = /^\/cameras\/([^/]+)\/record\/(\d+)$/.exec(path)
        if (method === 'POST' && record) {
          const [, id = '', seconds = '0'] = record
          const camera = cameras.find(id)
          if (!camera) return textAnswer(404, `there is no camera ${id}`)
          if (!camera.ring) return textAnswer(409, `camera ${id} records no clips; give it the setting clips`)
          const until = camera.ring.event(performance.now(), Number(seconds) * 1000)
          if (until === undefined) return textAnswer(409, `camera ${id} gives no stream to record now`)
          const more = Math.round((until - performance.now()) / 1000)
          const why = more < Number(seconds) ? `, as long as its clips may be (setting clips.longest)` : ''
          return textAnswer(202, `a clip of ${id} is recorded, with what came before, and ${more} s more${why}`)
        }
        return method === 'POST' ? changeScene(cameras.all, path, log) : undefined
      }
      await openHealth({ name: 'agent', metrics, notReady: () => ({}), routes }, config, lifetime)
      lifetime.own('service manager', notifySystemd(log), (stop) => stop())
    },
  )
}
