/** Pictures of a live stream behind ffmpeg: at the rate asked for, masked, made smaller, and a small gray one beside each for the motion gate. */
import type { Readable } from 'node:stream'
import { startFfmpeg } from '@frameloop/kit/ffmpeg'
import { jpegSize } from '@frameloop/kit/jpeg-header'
import type { CameraSettings } from '../config.ts'
import { motionHeight, motionWidth } from './motion.ts'
import { type Captured, refusalOf, type SourceContext, SourceFailure } from './source.ts'

/** What ffmpeg's last words say about why there is no picture. */
export function failureOf(said: string): SourceFailure {
  const status = /\b401\b|Unauthorized/i.test(said) ? 401 : /\b403\b|Forbidden/i.test(said) ? 403 : /\b404\b|Not Found/i.test(said) ? 404 : 0
  const refused = refusalOf(status, 'stream')
  if (refused) return refused
  if (/does not contain any stream|matches no streams|Could not find codec|Output file #0 does not contain/i.test(said))
    return new SourceFailure('wrong', 'the stream holds no video, or none that ffmpeg can decode')
  if (/ENOENT/.test(said)) return new SourceFailure('wrong', `${said.split('\n').at(-1)}: install ffmpeg 5 or newer, or name it with the setting ffmpeg`)
  if (/Connection refused|No route to host|Network is unreachable/i.test(said)) return new SourceFailure('backing off', 'nothing answers at the camera address')
  if (/No such file or directory/.test(said)) return new SourceFailure('backing off', 'the device is not there')
  return new SourceFailure('backing off', said.split('\n').at(-1) || 'the stream ended')
}

/** Filters that masks and size come to; empty without any. */
export function finishingFilters({ masks = [], width }: Pick<CameraSettings, 'masks' | 'width'>): string[] {
  return [...masks.map(([x, y, w, h]) => `drawbox=x=iw*${x}:y=ih*${y}:w=iw*${w}:h=ih*${h}:color=black:t=fill`), ...(width === undefined ? [] : [`scale='min(${width},iw)':-2`])]
}

/** Arguments from the input on. */
export function outputArgs(settings: CameraSettings, gray: boolean): string[] {
  const filters = [`fps=${settings.framesPerSecond ?? 5}`, ...finishingFilters(settings)].join(',')
  const jpeg = ['-q:v', String(settings.quality ?? 3), '-f', 'mpjpeg', 'pipe:1']
  if (!gray) return ['-an', '-vf', filters, ...jpeg]
  const graph = `[0:v:0]${filters},split[picture][seen];[seen]scale=${motionWidth}:${motionHeight}:flags=area,format=gray[gray]`
  return ['-filter_complex', graph, '-map', '[picture]', ...jpeg, '-map', '[gray]', '-f', 'rawvideo', 'pipe:3']
}

/** Chunks → pieces of exactly `size` bytes. */
async function* piecesOf(chunks: Readable, size: number): AsyncGenerator<Buffer> {
  let waiting: Buffer = Buffer.alloc(0)
  for await (const chunk of chunks as AsyncIterable<Buffer>) {
    waiting = waiting.length === 0 ? chunk : Buffer.concat([waiting, chunk])
    for (; waiting.length >= size; waiting = waiting.subarray(size)) yield waiting.subarray(0, size)
  }
}

export async function* ffmpegPictures(
  inputArgs: readonly string[],
  settings: CameraSettings,
  sourceName: string,
  context: SourceContext,
  signal: AbortSignal,
): AsyncGenerator<Captured> {
  const ffmpeg = startFfmpeg(context.ffmpeg, [...inputArgs, ...outputArgs(settings, context.wantsGray)], signal, { sideOutput: context.wantsGray })
  const grays = ffmpeg.side ? piecesOf(ffmpeg.side, motionWidth * motionHeight) : undefined
  const jpegs = ffmpeg.jpegs[Symbol.asyncIterator]()
  // one picture is always asked for ahead: ffmpeg may have to hand it over before the gray one of the picture in hand
  let ahead = jpegs.next()
  try {
    for (;;) {
      const { value: bytes, done } = await ahead
      if (done) break
      ahead = jpegs.next()
      ahead.catch(() => {})
      const gray = (await grays?.next())?.value as Buffer | undefined
      yield { bytes, extension: 'jpg', kind: 'image', capturedAt: Date.now(), ...jpegSize(bytes), sourceName, newPass: false, ...(gray ? { gray } : {}) }
    }
  } finally {
    ffmpeg.stop()
  }
  await ffmpeg.ended
  if (!signal.aborted) throw failureOf(ffmpeg.said())
}
