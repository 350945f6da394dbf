/** One agent: each camera captures into the spool; the uploader and the announcer empty it; a report says how it goes. */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import { Counter, Gauge, type Metrics } from '@frameloop/kit/metrics'
import { sha256Hex } from '@frameloop/kit/object-store'
import { backoffPause } from '@frameloop/kit/retry'
import type { EpochMs } from '@frameloop/kit/units'
import { type Epoch, isName, mintEpoch } from '@frameloop/schemas/ids'
import { newTraceparent } from '@frameloop/schemas/trace'
import { type CameraSettings, openSource } from './capture/open-source.ts'
import type { CameraState, Source } from './capture/source.ts'
import type { Spool } from './spool/spool.ts'

export interface Camera {
  readonly settings: CameraSettings
  readonly source: Source
  state: CameraState
  message: string
  epoch: Epoch
  seq: number
  lastFrameAt: EpochMs
  framesPerSecond: number
}

/** Reads the CAMERAS setting. Throws `CONFIG_INVALID` with every problem. */
export function readCameras(text: string): Camera[] {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (thrown) {
    throw new Fault('CONFIG_INVALID', 'CAMERAS is no JSON, for example CAMERAS=\'[{"cameraId":"door","address":"rtsp://10.0.0.7/stream"}]\'', {}, thrown)
  }
  const problems: string[] = []
  const seen = new Set<string>()
  const cameras = (Array.isArray(parsed) ? parsed : []).flatMap((entry: Partial<CameraSettings>, at): CameraSettings[] => {
    if (typeof entry.cameraId !== 'string' || !isName(entry.cameraId)) problems.push(`camera ${at + 1}: cameraId must be letters, digits, dots, dashes or underscores, 64 at most`)
    else if (seen.has(entry.cameraId)) problems.push(`camera ${at + 1}: cameraId ${entry.cameraId} is there twice`)
    else if (typeof entry.address !== 'string') problems.push(`camera ${entry.cameraId}: address is missing`)
    else {
      seen.add(entry.cameraId)
      return [{ cameraId: entry.cameraId, address: entry.address, ...(entry.framesPerSecond ? { framesPerSecond: entry.framesPerSecond } : {}) }]
    }
    return []
  })
  if (!Array.isArray(parsed) || parsed.length === 0) problems.push('there must be at least one camera')
  if (problems.length > 0) throw new Fault('CONFIG_INVALID', `CAMERAS is wrong:\n  ${problems.join('\n  ')}`)
  return cameras.map((settings) => ({ settings, source: openSource(settings), state: 'connecting', message: '', epoch: mintEpoch(), seq: 0, lastFrameAt: 0, framesPerSecond: 0 }))
}

export interface CaptureTools {
  readonly spool: Spool
  readonly log: Log
  readonly metrics: Metrics
  readonly ffmpeg: string
  readonly ffprobe: string
}

interface CaptureMetrics {
  readonly captured: Counter<'camera'>
  readonly refused: Counter<'camera'>
  readonly streaming: Gauge<'camera'>
}

export function captureMetrics(registry: Metrics): CaptureMetrics {
  const registers = [registry]
  return {
    captured: new Counter({ name: 'frameloop_agent_captured_total', help: 'Frames durable in the spool', labelNames: ['camera'], registers }),
    refused: new Counter({ name: 'frameloop_agent_refused_total', help: 'Frames the spool could not take', labelNames: ['camera'], registers }),
    streaming: new Gauge({ name: 'frameloop_agent_streaming', help: '1 while pictures arrive', labelNames: ['camera'], registers }),
  }
}

/** Captures one camera until the signal; a source that fails is opened again with growing pauses. A broken spool ends the agent. */
export async function capture(camera: Camera, tools: CaptureTools, metrics: CaptureMetrics, signal: AbortSignal): Promise<void> {
  const { spool, log } = tools
  const { cameraId } = camera.settings
  const report = (state: CameraState, message: string): void => {
    if (camera.state !== state) log.info({ cameraId, state, was: camera.state, message }, 'camera state changed')
    camera.state = state
    camera.message = message
    metrics.streaming.set({ camera: cameraId }, state === 'streaming' ? 1 : 0)
  }
  let failures = 0
  while (!signal.aborted) {
    try {
      for await (const picture of camera.source.frames({ log, ffmpeg: tools.ffmpeg, ffprobe: tools.ffprobe, report }, signal)) {
        if (picture.newPass && camera.seq > 0) {
          camera.epoch = mintEpoch()
          camera.seq = 0
        }
        try {
          await spool.append(
            {
              cameraId,
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
            },
            picture.bytes,
          )
        } catch (thrown) {
          if (!(thrown instanceof Fault) || thrown.code !== 'SPOOL_FULL') throw thrown
          // never captured: no seq was used, and the report says so
          metrics.refused.inc({ camera: cameraId })
          report('stalled', thrown.message)
          await sleep(1_000, undefined, { signal })
          continue
        }
        camera.seq += 1
        failures = 0
        const now = Date.now()
        const gap = now - camera.lastFrameAt
        camera.framesPerSecond = gap > 10_000 ? 0 : camera.framesPerSecond * 0.8 + (1000 / Math.max(1, gap)) * 0.2
        camera.lastFrameAt = now
        metrics.captured.inc({ camera: cameraId })
      }
      if (camera.state === 'ended') return
    } catch (thrown) {
      if (signal.aborted) return
      if (thrown instanceof Fault && thrown.code === 'SPOOL_BROKEN') throw thrown
      failures += 1
      report('wrong', rootMessage(thrown))
      log.error({ err: thrown, cameraId }, 'camera failed')
      await sleep(backoffPause(failures, { first: 500, cap: 15_000 }, Math.random()), undefined, { signal }).catch(() => {})
    }
  }
}
