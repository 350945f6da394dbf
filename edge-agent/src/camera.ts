/** One camera: connects, watches, decides what to keep, and puts it into the spool. */
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import { type Log, redact } from '@frameloop/kit/log'
import { Counter, Gauge, type Metrics } from '@frameloop/kit/metrics'
import { Turns } from '@frameloop/kit/turns'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { type Epoch, mintEpoch } from '@frameloop/schemas/ids'
import { newTraceparent } from '@frameloop/schemas/trace'
import { afterFailure, Pace, watched } from './capture/camera-state.ts'
import { clipFile } from './capture/clip-file.ts'
import { ClipRing } from './capture/clip-ring.ts'
import { finishPicture, grayOf } from './capture/finish.ts'
import { CameraHealth, type HealthMark } from './capture/health.ts'
import { type Judgement, MotionGate } from './capture/motion.ts'
import { openSource } from './capture/open-source.ts'
import type { CameraState, Captured, Source } from './capture/source.ts'
import { type CameraSettings, ratesOf } from './config.ts'
import { lastMoment, soonAfter } from './soon-after.ts'
import type { FrameHead } from './spool/contents.ts'
import type { Spool } from './spool/spool.ts'

export interface Camera {
  readonly settings: CameraSettings
  readonly source: Source
  readonly gate: MotionGate | undefined
  readonly health: CameraHealth
  /** What is wrong with what it sees. */
  marks: readonly HealthMark[]
  /** By a clock that nobody sets. */
  lookedAt: Ms
  state: CameraState
  message: string
  epoch: Epoch
  seq: number
  lastFrameAt: EpochMs
  /** The same by a clock that nobody sets. */
  keptAt: Ms
  /** Pictures in a row that could not be masked or made smaller. */
  unfinished: number
  framesPerSecond: number
  /** The spool could not take its last frame. */
  isRefused: boolean
  /** The next picture is kept whatever the gate says. */
  wanted: boolean
  /** The stream itself, where clips are wanted. */
  readonly ring: ClipRing | undefined
}

/** Throws `SOURCE_UNREADABLE` for an address that no source understands. */
/** `memories`: as of `openSource`. */
export function openCamera(settings: CameraSettings, memories?: string): Camera {
  return {
    settings,
    source: openSource(settings, memories),
    gate: settings.motion ? new MotionGate(settings.motion, ratesOf(settings).kept) : undefined,
    health: new CameraHealth(),
    ring: settings.clips ? new ClipRing(settings.clips) : undefined,
    marks: [],
    lookedAt: Number.NEGATIVE_INFINITY,
    state: 'connecting',
    message: '',
    epoch: mintEpoch(),
    seq: 0,
    lastFrameAt: 0,
    keptAt: Number.NEGATIVE_INFINITY,
    unfinished: 0,
    framesPerSecond: 0,
    isRefused: false,
    wanted: false,
  }
}

const healthInterval = 10_000

export interface CameraTools {
  readonly spool: Spool
  /** Where clips lie while they are put together. */
  readonly folder: string
  readonly log: Log
  readonly ffmpeg: string
  readonly ffprobe: string
  readonly metrics: CameraMetrics
}

export interface CameraMetrics {
  readonly captured: Counter<'camera'>
  readonly still: Counter<'camera'>
  readonly refused: Counter<'camera'>
  readonly failures: Counter<'camera' | 'state'>
  readonly streaming: Gauge<'camera'>
}

export function cameraMetrics(registry: Metrics): CameraMetrics {
  const registers = [registry]
  const labelNames = ['camera'] as const
  return {
    captured: new Counter({ name: 'frameloop_agent_captured_total', help: 'Frames durable in the spool', labelNames, registers }),
    still: new Counter({ name: 'frameloop_agent_still_total', help: 'Pictures not kept because nothing moved', labelNames, registers }),
    refused: new Counter({ name: 'frameloop_agent_refused_total', help: 'Frames the spool could not take, and pictures that could not be masked', labelNames, registers }),
    failures: new Counter({ name: 'frameloop_agent_camera_failures_total', help: 'Connections that ended, by what it came to', labelNames: ['camera', 'state'], registers }),
    streaming: new Gauge({ name: 'frameloop_agent_streaming', help: '1 while pictures arrive', labelNames, registers }),
  }
}

/** Of all cameras: each takes twice its size of the disk. */
const clips = new Turns<'one at a time'>()

/** Captures until the signal, or until the material has ended; a clip under way is kept as far as it came. A broken spool ends the agent. */
export async function runCamera(camera: Camera, tools: CameraTools, signal: AbortSignal): Promise<void> {
  await capture(camera, tools, signal)
  await takeClip(camera, tools, () => {}, signal, true)
  // one that is there no more, or has ended, streams no more
  tools.metrics.streaming.remove({ camera: camera.settings.id })
}

/** A camera that gives a picture and drops the connection, again and again, has not recovered with it. */
const steady: Ms = 10_000

async function capture(camera: Camera, tools: CameraTools, signal: AbortSignal): Promise<void> {
  const { log, metrics } = tools
  const { settings, source } = camera
  const labels = { camera: settings.id }
  const report = (state: CameraState, message: string): void => {
    if (camera.state !== state) log.info({ cameraId: settings.id, state, was: camera.state, message }, 'camera state changed')
    camera.state = state
    camera.message = message
    metrics.streaming.set(labels, state === 'streaming' ? 1 : 0)
  }
  let failures = 0
  while (!signal.aborted) {
    report('connecting', '')
    const connection = new AbortController()
    // by hand: of a signal that lives for years `AbortSignal.any` keeps every signal that was made of it
    const end = (): void => connection.abort(signal.reason)
    signal.addEventListener('abort', end, { once: true })
    const began = performance.now()
    const say = (message: string): void => report('streaming', message)
    const pace = source.patience ? new Pace(ratesOf(settings).asked) : undefined
    const context = { log, ffmpeg: tools.ffmpeg, ffprobe: tools.ffprobe, wantsGray: camera.gate !== undefined, say, ...(camera.ring ? { ring: camera.ring } : {}) }
    try {
      for await (const picture of watched(source.pictures(context, connection.signal), source.patience, () => connection.abort())) {
        if (camera.state !== 'streaming' && !camera.isRefused) report('streaming', '')
        if (performance.now() - began > steady) failures = 0
        const slow = pace?.came(performance.now())
        if (slow !== undefined && slow !== camera.message && !camera.isRefused) {
          if (slow) log.warn({ cameraId: settings.id, message: slow }, 'camera is slow')
          report('streaming', slow)
        }
        await take(camera, picture, tools, report, signal)
        await takeClip(camera, tools, report, signal)
      }
      if (!signal.aborted) report('ended', 'it was played to its end')
      return
    } catch (thrown) {
      if (signal.aborted) return
      if (thrown instanceof Fault && thrown.code === 'SPOOL_BROKEN') throw thrown
      // what was recorded until the connection broke is kept
      await takeClip(camera, tools, report, signal, true)
      failures += 1
      const { state, message, pause } = afterFailure(thrown, failures, Math.random())
      report(state, message)
      metrics.failures.inc({ ...labels, state })
      log.debug({ err: thrown, cameraId: settings.id, pause }, 'camera is asked again later')
      await sleep(pause, undefined, { signal }).catch(() => {})
    } finally {
      signal.removeEventListener('abort', end)
    }
  }
}

/** What the gate says of a picture; undefined where there is none. Every few seconds the camera's health is looked at too. */
async function judge(camera: Camera, picture: Captured, log: Log): Promise<Judgement | undefined> {
  const isDue = performance.now() - camera.lookedAt >= healthInterval
  if (picture.kind === 'clip' || (!camera.gate && !isDue)) return undefined
  const gray = picture.gray ?? (await grayOf(picture.bytes).catch(() => undefined))
  // what cannot be decoded is kept: validate says what it is
  if (!gray) return undefined
  if (isDue) {
    camera.lookedAt = performance.now()
    const marks = camera.health.look(gray, camera.lookedAt)
    if (marks.join() !== camera.marks.join()) log.warn({ cameraId: camera.settings.id, marks, were: camera.marks }, 'what the camera sees has changed')
    camera.marks = marks
  }
  return camera.gate?.judge(gray, picture.capturedAt)
}

/** A camera whose pictures are all damaged is no camera that streams. */
const mostUnfinished = 20

/** One of a cheap camera now and then; without masks and size it would be kept, and validate would say what it is. Throws what all of them in a row fail with. */
function leftOut(camera: Camera, thrown: unknown, log: Log): undefined {
  camera.unfinished += 1
  if (camera.unfinished === 1) log.warn({ err: thrown, cameraId: camera.settings.id }, 'a picture could not be decoded and was left out')
  if (camera.unfinished % mostUnfinished === 0) throw thrown
}

async function take(camera: Camera, seen: Captured, tools: CameraTools, report: (state: CameraState, message: string) => void, signal: AbortSignal): Promise<void> {
  const { settings, source } = camera
  const { metrics } = tools
  const labels = { camera: settings.id }
  if (seen.newPass && camera.seq > 0) {
    camera.epoch = mintEpoch()
    camera.seq = 0
  }
  if (seen.kind === 'clip' && settings.masks && settings.masks.length > 0) {
    report('streaming', `${seen.sourceName} is a clip, which cannot be masked here: it is left out`)
    return
  }
  // masked before it is looked at: what is blackened does not move either
  const picture = source.finishes || seen.kind === 'clip' ? seen : await finishPicture(seen, settings).catch((thrown: unknown) => leftOut(camera, thrown, tools.log))
  if (!picture) {
    metrics.refused.inc(labels)
    if (!camera.isRefused) report('streaming', `${seen.sourceName}: a picture could not be decoded and was left out`)
    return
  }
  if (camera.unfinished > 0 && !camera.isRefused) report('streaming', '')
  camera.unfinished = 0
  const judged = await judge(camera, picture, tools.log)
  if (judged?.why === 'motion' && settings.clips?.onMotion) camera.ring?.event(performance.now())
  if (judged && !judged.keep && !camera.wanted) {
    metrics.still.inc(labels)
    return
  }
  const isEvent = judged?.why === 'motion' || camera.wanted || picture.kind === 'clip'
  if (await keep(camera, picture, { ...(judged ? { motion: judged.changed } : {}), ...(isEvent ? { isEvent } : {}) }, tools, report, signal)) camera.wanted = false
}

/** Into the spool. False when it is full; what a source still has later waits until it is not. */
async function keep(
  camera: Camera,
  picture: Captured,
  about: Pick<FrameHead, 'motion' | 'isEvent' | 'endedAt'>,
  { spool, metrics }: Pick<CameraTools, 'spool' | 'metrics'>,
  report: (state: CameraState, message: string) => void,
  signal: AbortSignal,
): Promise<boolean> {
  const { settings, source } = camera
  const labels = { camera: settings.id }
  try {
    await spool.append(
      {
        cameraId: settings.id,
        epoch: camera.epoch,
        seq: camera.seq + 1,
        kind: picture.kind,
        extension: picture.extension,
        capturedAt: picture.capturedAt,
        mediaOffsetUs: picture.mediaOffsetUs ?? null,
        width: picture.width,
        height: picture.height,
        sourceName: picture.sourceName,
        sha256: sha256Hex(picture.bytes),
        traceparent: newTraceparent(),
        // an event is worth more than the routine: it outlives it when the spool is full
        ...about,
      },
      picture.bytes,
      // what the source still has need not take the place of what it gave before
      !source.waits,
    )
  } catch (thrown) {
    if (!(thrown instanceof Fault) || thrown.code !== 'SPOOL_FULL') throw thrown
    // never captured: no seq was used, and the report says so
    metrics.refused.inc(labels)
    camera.isRefused = true
    report('stalled', thrown.message)
    await sleep(1_000, undefined, { signal })
    return source.waits && picture.bytes.length < spool.size.capacity ? keep(camera, picture, about, { spool, metrics }, report, signal) : false
  }
  camera.isRefused = false
  camera.seq += 1
  const now = performance.now()
  const gap = now - camera.keptAt
  camera.framesPerSecond = gap > 10_000 ? 0 : camera.framesPerSecond * 0.8 + (1000 / Math.max(1, gap)) * 0.2
  camera.keptAt = now
  camera.lastFrameAt = Date.now()
  metrics.captured.inc(labels)
  return true
}

/** A clip whose time has come, as a file that players know. */
async function takeClip(camera: Camera, tools: CameraTools, report: (state: CameraState, message: string) => void, signal: AbortSignal, hasEnded = false): Promise<void> {
  const clip = camera.ring?.take(performance.now(), hasEnded)
  if (hasEnded) camera.ring?.clear()
  if (!clip) return
  const endedAt = Date.now()
  const startedAt = Math.round(endedAt - clip.age)
  let failure: unknown
  using end = soonAfter(signal, lastMoment)
  // a disk that is full, a program that is gone: no reason for other cameras to end
  const bytes = await clips
    .take('one at a time', async () => {
      // the file beside the stream it is cut from
      if (!tools.spool.leavesFree(2 * clip.transportStream.length)) throw new Fault('SPOOL_FULL', 'The disk has no room to cut a clip')
      return clipFile(clip, camera.settings.id, tools, end.signal)
    })
    .catch((thrown: unknown) => {
      failure = thrown
    })
  if (!bytes) {
    tools.log.warn({ err: failure, cameraId: camera.settings.id, bytes: clip.transportStream.length }, 'a clip could not be cut from the stream')
    return
  }
  const about = { width: 0, height: 0, sourceName: redact(camera.settings.address), newPass: false }
  await keep(camera, { bytes, extension: 'mp4', kind: 'clip', capturedAt: startedAt, ...about }, { isEvent: true, endedAt }, tools, report, signal)
}
