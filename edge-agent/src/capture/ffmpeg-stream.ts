/** Pictures of a live stream behind ffmpeg: at the rate asked for, masked, made smaller, and a small gray one beside each for the motion gate. */
import type { Readable } from 'node:stream'
import { startFfmpeg } from '@frameloop/kit/ffmpeg'
import { jpegSize } from '@frameloop/kit/jpeg-header'
import { type CameraSettings, ratesOf } from '../config.ts'
import { motionHeight, motionWidth } from './motion.ts'
import { type Captured, refusalOf, type SourceContext, SourceFailure } from './source.ts'

/** What ffmpeg's last words say about why there is no picture. */
export function failureOf(said: string): SourceFailure {
  // as ffmpeg says what it was answered: its lines name the address too, and channels are called 401
  const [, answered, word = ''] = /(?:failed:|returned|error) (40[134])\b|\b(Unauthorized|Forbidden)\b/i.exec(said) ?? []
  const status = answered ? Number(answered) : ({ unauthorized: 401, forbidden: 403 }[word.toLowerCase()] ?? 0)
  const refused = refusalOf(status, 'stream')
  if (refused) return refused
  if (/does not contain any stream|matches no streams|Could not find codec|Output file #0 does not contain/i.test(said))
    return new SourceFailure('wrong', 'the stream holds no video, or none that ffmpeg can decode')
  // Node says it the one way, setpriv the other
  if (/ENOENT|failed to execute/.test(said)) return new SourceFailure('wrong', `${said.split('\n').at(-1)}: install ffmpeg 5 or newer, or name it with the setting ffmpeg`)
  if (/Connection refused|No route to host|Network is unreachable/i.test(said)) return new SourceFailure('backing off', 'nothing answers at the camera address')
  if (/No such file or directory/.test(said)) return new SourceFailure('backing off', 'the device is not there')
  return new SourceFailure('backing off', said.split('\n').at(-1) || 'the stream ended')
}

/** Filters that masks and size come to; empty without any. */
export function finishingFilters({ masks = [], width }: Pick<CameraSettings, 'masks' | 'width'>): string[] {
  // whole pixels around what was asked for: ffmpeg cuts fractions off of place and size alike
  const box = masks.map(([x, y, w, h]) => `drawbox=x=floor(iw*${x}):y=floor(ih*${y}):w=ceil(iw*${x + w})-floor(iw*${x}):h=ceil(ih*${y + h})-floor(ih*${y}):color=black:t=fill`)
  return [...box, ...(width === undefined ? [] : [`scale='min(${width},iw)':-2`])]
}

/** Arguments from the input on: pictures to `pipe:1`, then as asked for the small gray ones and the stream itself. */
export function outputArgs(settings: CameraSettings, { gray, clips }: { readonly gray: boolean; readonly clips: boolean }): string[] {
  const { masks = [], quality = 3 } = settings
  const filters = [`fps=${ratesOf(settings).asked}`, ...finishingFilters(settings)].join(',')
  // tables of each picture's own would save a fortieth of its bytes and cost a tenth of all CPU time; so would threads for a few pictures a second
  const jpeg = ['-q:v', String(quality), '-huffman', 'default', '-threads', '1', '-f', 'mpjpeg', 'pipe:1']
  // what is masked cannot be copied: it is encoded again, at the rate of the pictures
  const copies = clips && masks.length === 0
  const names = ['picture', ...(gray ? ['seen'] : []), ...(clips && !copies ? ['masked'] : [])]
  const graph = [
    `[0:v:0]${filters},split=${names.length}${names.map((name) => `[${name}]`).join('')}`,
    ...(gray ? [`[seen]scale=${motionWidth}:${motionHeight}:flags=area,format=gray[gray]`] : []),
  ]
  const again = ['-map', '[masked]', '-c:v', 'libx264', '-preset', 'ultrafast', '-tune', 'zerolatency', '-g', String(Math.ceil(ratesOf(settings).asked * 2))]
  return [
    ...(names.length > 1 ? ['-filter_complex', graph.join(';'), '-map', '[picture]', ...jpeg] : ['-map', '0:v:0', '-vf', filters, ...jpeg]),
    ...(gray ? ['-map', '[gray]', '-f', 'rawvideo', 'pipe:3'] : []),
    ...(clips ? [...(copies ? ['-map', '0:v:0', '-c', 'copy'] : again), '-f', 'mpegts', '-flush_packets', '1', `pipe:${gray ? 4 : 3}`] : []),
  ]
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
  const { wantsGray, ring } = context
  const ffmpeg = startFfmpeg(context.ffmpeg, [...inputArgs, ...outputArgs(settings, { gray: wantsGray, clips: ring !== undefined })], signal, {
    sideOutputs: Number(wantsGray) + Number(ring !== undefined),
  })
  const sides = [...ffmpeg.sides]
  const graySide = wantsGray ? sides.shift() : undefined
  const grays = graySide && piecesOf(graySide, motionWidth * motionHeight)
  sides[0]?.on('data', (chunk: Buffer) => ring?.push(chunk, performance.now()))
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
    // what nobody reads any more would keep it from ending
    graySide?.destroy()
  }
  await ffmpeg.ended
  if (!signal.aborted) throw failureOf(ffmpeg.said())
}
