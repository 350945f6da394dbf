/**
 * A video file as a camera: every frame, or as many a second as the camera is set to, its exact media offset from the container's presentation times, in real time
 * or as fast as the spool takes them. Each pass over the file has the same offsets and byte-equal pictures.
 */
import { existsSync } from 'node:fs'
import { basename } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { runFfprobe, startFfmpeg } from '@frameloop/kit/ffmpeg'
import { jpegSize } from '@frameloop/kit/jpeg-header'
import type { Bytes, Us } from '@frameloop/kit/units'
import { type CameraSettings, ratesOf } from '../config.ts'
import { finishingFilters } from './ffmpeg-stream.ts'
import { type Source, SourceFailure } from './source.ts'

export interface FileSettings {
  readonly path: string
  readonly loop: boolean
  readonly realTime: boolean
}

/** What ffprobe says of a day of 60 frames a second. */
const probeLimit: Bytes = 80_000_000

/** Whether a frame is the first of its share of a second, when `rate` a second are kept: the same ones in each pass. */
export function isDue(offset: Us, before: Us | undefined, rate: number | undefined): boolean {
  if (rate === undefined || before === undefined) return true
  const shareOf = (at: Us): number => Math.floor((at * rate) / 1e6)
  return shareOf(offset) > shareOf(before)
}

/** ffprobe's `pts_time` lines → offsets from the first frame, in presentation order. */
export function offsetsOf(printed: string): Us[] {
  const times = printed
    .split('\n')
    .map((line) => Number.parseFloat(line))
    .filter((time) => Number.isFinite(time))
    .sort((a, b) => a - b)
  const first = times[0] ?? 0
  return times.map((time) => Math.round((time - first) * 1e6))
}

export function fileSource(settings: FileSettings, camera: CameraSettings): Source {
  const filters = finishingFilters(camera).join(',')
  const sourceName = basename(settings.path)
  const rate = camera.framesPerSecond === undefined ? undefined : ratesOf(camera).asked
  return {
    kind: 'file',
    waits: !settings.realTime,
    finishes: true,
    async *pictures(context, signal) {
      if (!existsSync(settings.path)) throw new SourceFailure('wrong', `there is no file ${settings.path}`)
      const probe = await runFfprobe(
        context.ffprobe,
        ['-protocol_whitelist', 'file', '-select_streams', 'v:0', '-show_entries', 'packet=pts_time', '-of', 'csv=p=0', settings.path],
        signal,
        { most: probeLimit },
      )
      if (probe.isTooMuch) throw new SourceFailure('wrong', `${sourceName} has more frames than are played as one: cut it into pieces of a day`)
      const offsets = offsetsOf(probe.out)
      if (probe.code !== 0 || offsets.length === 0) throw new SourceFailure('wrong', `${sourceName} holds no video that ffmpeg can read: ${probe.said}`)
      const step = offsets.length > 1 ? ((offsets.at(-1) ?? 0) - (offsets[0] ?? 0)) / (offsets.length - 1) : 40_000
      const offsetAt = (index: number): Us => offsets[index] ?? Math.round(index * step)
      const args = [
        '-protocol_whitelist',
        'file,pipe',
        '-i',
        settings.path,
        '-map',
        '0:v:0',
        '-fps_mode',
        'passthrough',
        ...(filters ? ['-vf', filters] : []),
        '-threads',
        '1',
        '-flags',
        '+bitexact',
        '-q:v',
        String(camera.quality ?? 3),
        '-f',
        'mpjpeg',
        '-',
      ]
      do {
        const ffmpeg = startFfmpeg(context.ffmpeg, args, signal)
        const passStart = Date.now()
        const since = performance.now()
        let index = 0
        for await (const bytes of ffmpeg.jpegs) {
          const mediaOffsetUs = offsetAt(index)
          index += 1
          if (!isDue(mediaOffsetUs, index > 1 ? offsetAt(index - 2) : undefined, rate)) continue
          const early = since + mediaOffsetUs / 1000 - performance.now()
          if (settings.realTime && early > 0) await sleep(early, undefined, { signal })
          yield {
            bytes,
            extension: 'jpg',
            kind: 'image',
            capturedAt: settings.realTime ? Date.now() : Math.round(passStart + mediaOffsetUs / 1000),
            mediaOffsetUs,
            ...jpegSize(bytes),
            sourceName,
            newPass: index === 1,
          }
        }
        await ffmpeg.ended
        if (signal.aborted) return
        if (index === 0) throw new SourceFailure('wrong', `ffmpeg gave no picture of ${sourceName}: ${ffmpeg.said()}`)
        if (settings.realTime) await sleep(Math.max(0, since + (offsets.length * step) / 1000 - performance.now()), undefined, { signal })
      } while (settings.loop)
    },
  }
}
