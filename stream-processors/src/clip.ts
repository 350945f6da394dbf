/** Clips through ffprobe and ffmpeg: a file that we wrote, a demuxer that we chose, no network, limits of time and memory. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Fault } from '@frameloop/kit/fault'
import { runFfprobe, startFfmpeg } from '@frameloop/kit/ffmpeg'
import type { Us } from '@frameloop/kit/units'
import { pixelLimit } from './picture/decode-picture.ts'
import { sniffPicture } from './picture/picture-header.ts'

const timeLimit = 60_000
/** Address space of ffmpeg: 4K HEVC needs 0.7 GB of it. */
const memory = 2 * 1024 ** 3
/** An hour, or what 50 frames a second make of it: beyond any clip of an event. */
const durationLimit = 3_600
const frameLimit = 200_000

/** The demuxer of each container. It is named outright, so none that reads other files or addresses (hls, concat, …) is ever tried. */
const demuxers: Readonly<Record<string, string>> = { mp4: 'mov', mkv: 'matroska', avi: 'avi', mjpeg: 'mjpeg' }

/** True format by content; anything else never reaches ffmpeg. A bare sequence of JPEGs holds no times: 25 a second are assumed. */
export function sniffClip(bytes: Uint8Array): string | undefined {
  const text = (from: number, to: number): string => Buffer.from(bytes.subarray(from, to)).toString('latin1')
  if (text(4, 8) === 'ftyp') return 'mp4'
  if (text(0, 4) === '\x1a\x45\xdf\xa3') return 'mkv'
  if (text(0, 4) === 'RIFF' && text(8, 12) === 'AVI ') return 'avi'
  if (sniffPicture(bytes) === 'jpeg') return 'mjpeg'
  return undefined
}

export interface ClipInfo {
  readonly format: string
  readonly codec: string
  readonly width: number
  readonly height: number
  /** As the header states; 0 when it does not. */
  readonly durationUs: Us
  readonly frames: readonly ClipFrame[]
  /** It ends before the duration its header states. */
  readonly isTruncated: boolean
}

export interface ClipFrame {
  /** In the stream's own unit: names the frame to ffmpeg. */
  readonly pts: number
  /** From the first frame on. */
  readonly ptsUs: Us
  readonly isKey: boolean
}

export interface ClipTools {
  readonly ffmpeg: string
  readonly ffprobe: string
}

/** Which frames of a clip to take. */
export type Choice = { readonly by: 'rate'; readonly perSecond: number } | { readonly by: 'key-frames' } | { readonly by: 'scene'; readonly change: number }

async function withFile<Result>(bytes: Uint8Array, use: (path: string) => Promise<Result>): Promise<Result> {
  const folder = await mkdtemp(join(tmpdir(), 'frameloop-clip-'))
  try {
    const path = join(folder, 'clip')
    await writeFile(path, bytes, { mode: 0o600 })
    return await use(path)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

interface Probed {
  readonly packets?: readonly { readonly pts?: number; readonly pts_time?: string; readonly dts?: number; readonly dts_time?: string; readonly flags?: string }[]
  readonly streams?: readonly { readonly codec_name?: string; readonly width?: number; readonly height?: number; readonly nb_frames?: string; readonly avg_frame_rate?: string }[]
  readonly format?: { readonly duration?: string }
}

const seconds = (text: string | undefined): number => Number.parseFloat(text ?? '')

/** Throws `CLIP_UNREADABLE`; `CLIP_TOO_LARGE` by the header alone. Every packet is read, none is decoded. */
export async function probeClip(bytes: Uint8Array, tools: ClipTools, signal: AbortSignal): Promise<ClipInfo> {
  return withFile(bytes, (path) => probeFile(path, sniffClip(bytes), tools, signal))
}

async function probeFile(path: string, format: string | undefined, tools: ClipTools, signal: AbortSignal): Promise<ClipInfo> {
  if (!format) throw new Fault('CLIP_UNREADABLE', 'The bytes are no MP4, Matroska, AVI or MJPEG file')
  const limit = AbortSignal.any([signal, AbortSignal.timeout(timeLimit)])
  const probe = async (entries: string): Promise<Probed & { readonly said: string }> => {
    const { code, out, said } = await runFfprobe(
      tools.ffprobe,
      ['-f', demuxers[format] ?? format, '-protocol_whitelist', 'file', '-select_streams', 'v:0', '-show_entries', entries, '-of', 'json', path],
      limit,
      { memory },
    )
    signal.throwIfAborted()
    if (code !== 0) throw new Fault('CLIP_UNREADABLE', `The clip cannot be read: ${limit.aborted ? `not within ${timeLimit / 1000} s` : said.split('\n')[0]?.replace(path, 'it')}`)
    return { ...(JSON.parse(out) as Probed), said }
  }
  const header = await probe('format=duration:stream=codec_name,width,height,nb_frames,avg_frame_rate')
  const stream = header.streams?.[0]
  const width = stream?.width ?? 0
  const height = stream?.height ?? 0
  if (width === 0 || height === 0) throw new Fault('CLIP_UNREADABLE', `The ${format} holds no video`)
  const duration = format === 'mjpeg' ? 0 : seconds(header.format?.duration) || 0
  const [numerator = 0, denominator = 1] = (stream?.avg_frame_rate ?? '').split('/').map(Number)
  const stated = Number(stream?.nb_frames ?? Number.NaN)
  const frameCount = Number.isFinite(stated) ? stated : duration * (denominator > 0 ? numerator / denominator : 0)
  if (width * height > pixelLimit) throw new Fault('CLIP_TOO_LARGE', `The clip says it is ${width}x${height}, more than ${pixelLimit / 1e6} million pixels`)
  if (duration > durationLimit) throw new Fault('CLIP_TOO_LARGE', `The clip says it lasts ${Math.round(duration)} s, more than ${durationLimit}`)
  if (frameCount > frameLimit) throw new Fault('CLIP_TOO_LARGE', `The clip says it has ${Math.round(frameCount)} frames, more than ${frameLimit}`)

  const { packets = [] } = await probe('packet=pts,pts_time,dts,dts_time,flags')
  const timed = packets
    .map((packet) => ({ pts: packet.pts ?? packet.dts, at: seconds(packet.pts_time ?? packet.dts_time), isKey: packet.flags?.startsWith('K') ?? false }))
    .filter((packet): packet is { pts: number; at: number; isKey: boolean } => packet.pts !== undefined && Number.isFinite(packet.at))
    .sort((a, b) => a.pts - b.pts)
  const [first] = timed
  if (!first) throw new Fault('CLIP_UNREADABLE', `The ${format} holds no frame`)
  const frames = timed.map(({ pts, at, isKey }) => ({ pts, ptsUs: Math.round((at - first.at) * 1e6), isKey }))
  const durationUs = Math.round(duration * 1e6)
  return { format, codec: stream?.codec_name ?? '', width, height, durationUs, frames, isTruncated: endsEarly(frames, durationUs) }
}

/** Whether more than half a second, and more than two frames, of what the header states is missing. */
export function endsEarly(frames: readonly ClipFrame[], durationUs: Us): boolean {
  const last = frames.at(-1)?.ptsUs ?? 0
  const step = frames.length > 1 ? last / (frames.length - 1) : 0
  return durationUs - (last + step) > Math.max(500_000, 2 * step)
}

/** The frames to take at `perSecond`: the first, then each that is due. Indexes into `times`, which ascend. */
export function chooseFrames(times: readonly Us[], perSecond: number): number[] {
  const chosen: number[] = []
  let due = 0
  times.forEach((time, index) => {
    // half a millisecond forgives the rounding of containers
    if (time + 500 < due) return
    chosen.push(index)
    due = Math.max(due + 1e6 / perSecond, time)
  })
  return chosen
}

/** ffmpeg's expression for the frames chosen. */
function selection(frames: readonly ClipFrame[], choice: Choice, limit: number): string {
  if (choice.by === 'scene') return `eq(pts\\,${frames[0]?.pts ?? 0})+gt(scene\\,${choice.change})`
  const chosen =
    choice.by === 'key-frames'
      ? frames.filter(({ isKey }) => isKey)
      : chooseFrames(
          frames.map(({ ptsUs }) => ptsUs),
          choice.perSecond,
        ).flatMap((index) => frames[index] ?? [])
  return chosen
    .slice(0, limit)
    .map(({ pts }) => `eq(pts\\,${pts})`)
    .join('+')
}

export interface ExtractedPicture {
  readonly jpeg: Buffer
  /** From the first frame on: what the container says of this very frame, whatever was skipped before it. */
  readonly ptsUs: Us
}

/** The chosen frames, at most `limit`, as many as can be decoded: a truncated clip gives what it holds. Throws `CLIP_UNREADABLE`. */
export async function extractPictures(bytes: Uint8Array, choice: Choice, limit: number, tools: ClipTools, signal: AbortSignal): Promise<ExtractedPicture[]> {
  return withFile(bytes, async (path) => {
    const { format, frames } = await probeFile(path, sniffClip(bytes), tools, signal)
    const timesByPts = new Map(frames.map(({ pts, ptsUs }) => [pts, ptsUs]))
    const times: (Us | undefined)[] = []
    const onLine = (line: string): void => {
      const pts = /^\[Parsed_showinfo.* n: *\d+ pts: *(-?\d+) /.exec(line)?.[1]
      if (pts !== undefined) times.push(timesByPts.get(Number(pts)))
    }
    const input = ['-f', demuxers[format] ?? format, '-protocol_whitelist', 'file,pipe', '-threads', '1', '-i', path]
    const filter = `select=${selection(frames, choice, limit)},showinfo=checksum=0`
    const output = [
      '-map',
      '0:v:0',
      '-vf',
      filter,
      '-frames:v',
      String(limit),
      '-fps_mode',
      'passthrough',
      '-threads',
      '1',
      '-flags',
      '+bitexact',
      '-q:v',
      '2',
      '-f',
      'mpjpeg',
      '-',
    ]
    const ffmpeg = startFfmpeg(tools.ffmpeg, ['-loglevel', 'info', '-copyts', ...input, ...output], AbortSignal.any([signal, AbortSignal.timeout(timeLimit)]), { memory, onLine })
    const jpegs: Buffer[] = []
    for await (const jpeg of ffmpeg.jpegs) jpegs.push(jpeg)
    const code = await ffmpeg.ended
    signal.throwIfAborted()
    // killed by the time limit, or for memory: what came out by then is no account of the clip
    if (code === null) throw new Fault('CLIP_UNREADABLE', `Its frames could not be decoded within ${timeLimit / 1000} s`)
    const pictures = jpegs.flatMap((jpeg, at) => {
      const ptsUs = times[at]
      return ptsUs === undefined ? [] : [{ jpeg, ptsUs }]
    })
    if (pictures.length === 0) throw new Fault('CLIP_UNREADABLE', 'No frame of the clip could be decoded')
    return pictures
  })
}
