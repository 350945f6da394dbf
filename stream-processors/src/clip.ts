/** Clips through ffprobe and ffmpeg: a file that we wrote, a demuxer that we chose, no network, limits of CPU time and memory. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { Fault } from '@frameloop/kit/fault'
import { isNotRun, runFfprobe, startFfmpeg } from '@frameloop/kit/ffmpeg'
import { Places } from '@frameloop/kit/places'
import { type Bytes, type Ms, showMs, type Us } from '@frameloop/kit/units'
import { pixelLimit } from './picture/decode-picture.ts'
import { sniffPicture } from './picture/picture-header.ts'

/** CPU time for a clip of no length, for each second of it, and at most. One core decodes 65 pictures of 1080p a second, measured on a slow one. */
const cpuLimit = { least: 60_000, perSecond: 4_000, most: 600_000 } as const
/** By the clock, where others take the cores. */
const patience = 10
/** Each takes a core: more of them would only make each other late. */
const places = new Places(availableParallelism())
/** Address space of ffmpeg: 4K HEVC needs 0.7 GB of it. */
const memory = 2 * 1024 ** 3
/** An hour, or what 50 frames a second make of it: beyond any clip of an event. */
const durationLimit = 3_600
const frameLimit = 200_000
/** What ffprobe says of so many packets. */
const probeLimit: Bytes = 300 * frameLimit

const cpuFor = (durationUs: Us): Ms => Math.min(cpuLimit.most, cpuLimit.least + (durationUs / 1e6) * cpuLimit.perSecond)

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
  /** Its packets say when each frame is shown; those of AVI only say in which order they are decoded, which may be another. */
  readonly hasTimes: boolean
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
  readonly streams?: readonly {
    readonly codec_name?: string
    readonly width?: number
    readonly height?: number
    readonly nb_frames?: string
    readonly avg_frame_rate?: string
    readonly has_b_frames?: number
  }[]
  readonly format?: { readonly duration?: string; readonly start_time?: string }
}

const seconds = (text: string | undefined): number => Number.parseFloat(text ?? '')

/** Throws `CLIP_UNREADABLE`; `CLIP_TOO_LARGE` by the header alone. Every packet is read, none is decoded. */
export async function probeClip(bytes: Uint8Array, tools: ClipTools, signal: AbortSignal): Promise<ClipInfo> {
  return places.run(() => withFile(bytes, (path) => probeFile(path, sniffClip(bytes), tools, signal)))
}

async function probeFile(path: string, format: string | undefined, tools: ClipTools, signal: AbortSignal): Promise<ClipInfo> {
  if (!format) throw new Fault('CLIP_UNREADABLE', 'The bytes are no MP4, Matroska, AVI or MJPEG file')
  const limit = AbortSignal.any([signal, AbortSignal.timeout(patience * cpuLimit.least)])
  const probe = async (entries: string): Promise<Probed> => {
    const { code, out, said, isTooMuch } = await runFfprobe(
      tools.ffprobe,
      ['-f', demuxers[format] ?? format, '-protocol_whitelist', 'file', '-select_streams', 'v:0', '-show_entries', entries, '-of', 'json', path],
      limit,
      { memory, cpu: cpuLimit.least, most: probeLimit },
    )
    signal.throwIfAborted()
    if (isTooMuch) throw new Fault('CLIP_TOO_LARGE', `The clip holds more than ${frameLimit} frames`)
    if (code !== 0)
      throw new Fault(
        'CLIP_UNREADABLE',
        `The clip cannot be read: ${limit.aborted || (code === null && said === '') ? `not within ${showMs(cpuLimit.least)}` : said.split('\n')[0]?.replace(path, 'it')}`,
      )
    return JSON.parse(out) as Probed
  }
  const header = await probe('format=duration,start_time:stream=codec_name,width,height,nb_frames,avg_frame_rate,has_b_frames')
  const stream = header.streams?.[0]
  const width = stream?.width ?? 0
  const height = stream?.height ?? 0
  if (width === 0 || height === 0) throw new Fault('CLIP_UNREADABLE', `The ${format} holds no video`)
  // of a Matroska file that begins later than 0 it is the time of its end
  const begins = format === 'mkv' ? Math.max(0, seconds(header.format?.start_time) || 0) : 0
  const duration = format === 'mjpeg' ? 0 : Math.max(0, (seconds(header.format?.duration) || 0) - begins)
  const [numerator = 0, denominator = 1] = (stream?.avg_frame_rate ?? '').split('/').map(Number)
  const stated = Number(stream?.nb_frames ?? Number.NaN)
  const frameCount = Number.isFinite(stated) ? stated : duration * (denominator > 0 ? numerator / denominator : 0)
  if (width * height > pixelLimit) throw new Fault('CLIP_TOO_LARGE', `The clip says it is ${width}x${height}, more than ${pixelLimit / 1e6} million pixels`)
  if (duration > durationLimit) throw new Fault('CLIP_TOO_LARGE', `The clip says it lasts ${Math.round(duration)} s, more than ${durationLimit}`)
  if (frameCount > frameLimit) throw new Fault('CLIP_TOO_LARGE', `The clip says it has ${Math.round(frameCount)} frames, more than ${frameLimit}`)

  const { packets = [] } = await probe('packet=pts,pts_time,dts,dts_time,flags')
  if (packets.length > frameLimit) throw new Fault('CLIP_TOO_LARGE', `The clip holds ${packets.length} frames, more than ${frameLimit}`)
  // what only leads up to the first picture that is shown (an edit list, where something was cut off) is decoded and never seen
  const shown = packets.filter(({ flags }) => flags?.[1] !== 'D')
  // where none is shown out of order, the order of decoding says when as well
  const hasTimes = (stream?.has_b_frames ?? 0) === 0 || shown.every(({ pts }) => pts !== undefined)
  const timed = shown
    .map((packet) => ({ pts: packet.pts ?? packet.dts, at: seconds(packet.pts_time ?? packet.dts_time), isKey: packet.flags?.startsWith('K') ?? false }))
    .filter((packet): packet is { pts: number; at: number; isKey: boolean } => packet.pts !== undefined && Number.isFinite(packet.at))
    .sort((a, b) => a.pts - b.pts)
  const [first] = timed
  if (!first) throw new Fault('CLIP_UNREADABLE', `The ${format} holds no frame`)
  const frames = timed.map(({ pts, at, isKey }) => ({ pts, ptsUs: Math.round((at - first.at) * 1e6), isKey }))
  const durationUs = Math.round(duration * 1e6)
  return { format, codec: stream?.codec_name ?? '', width, height, durationUs, frames, isTruncated: endsEarly(frames, durationUs), hasTimes }
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

/** ffmpeg's expression for the frames chosen: by when they are shown, or where nobody knows that, the how manieth they are. */
function selection({ frames, hasTimes }: ClipInfo, choice: Choice, limit: number): string {
  const one = (index: number): string => (hasTimes ? `eq(pts\\,${frames[index]?.pts ?? 0})` : `eq(n\\,${index})`)
  if (choice.by === 'scene') return `${one(0)}+gt(scene\\,${choice.change})`
  const chosen =
    choice.by === 'key-frames'
      ? frames.flatMap(({ isKey }, index) => (isKey ? [index] : []))
      : chooseFrames(
          frames.map(({ ptsUs }) => ptsUs),
          choice.perSecond,
        )
  return chosen.slice(0, limit).map(one).join('+')
}

export interface ExtractedPicture {
  readonly jpeg: Buffer
  /** From the first frame on: what the container says of this very frame, whatever was skipped before it. */
  readonly ptsUs: Us
}

/** The chosen frames, at most `limit`, as many as can be decoded: a truncated clip gives what it holds. Throws `CLIP_UNREADABLE`. */
export async function extractPictures(bytes: Uint8Array, choice: Choice, limit: number, tools: ClipTools, signal: AbortSignal): Promise<ExtractedPicture[]> {
  return places.run(() => withFile(bytes, (path) => extractFrom(path, sniffClip(bytes), choice, limit, tools, signal)))
}

async function extractFrom(path: string, sniffed: string | undefined, choice: Choice, limit: number, tools: ClipTools, signal: AbortSignal): Promise<ExtractedPicture[]> {
  const clip = await probeFile(path, sniffed, tools, signal)
  const { format, frames, durationUs, hasTimes } = clip
  const timesByPts = new Map(hasTimes ? frames.map(({ pts, ptsUs }) => [pts, ptsUs]) : [])
  const times: (Us | undefined)[] = []
  const onLine = (line: string): void => {
    const [, place, n, pts] = /^\[Parsed_showinfo_(\d+) .* n: *(\d+) pts: *(-?\d+) /.exec(line) ?? []
    if (pts === undefined) return
    // what ffmpeg makes of the order of decoding names the frame; its time is that of its place
    if (!hasTimes && place === '0') timesByPts.set(Number(pts), frames[Number(n)]?.ptsUs as Us)
    else times.push(timesByPts.get(Number(pts)))
  }
  const input = ['-f', demuxers[format] ?? format, '-protocol_whitelist', 'file,pipe', '-threads', '1', '-i', path]
  const told = 'showinfo=checksum=0'
  const filter = [...(hasTimes ? [] : [told]), `select=${selection(clip, choice, limit)}`, told].join(',')
  const cpu = cpuFor(durationUs)
  const output = ['-map', '0:v:0', '-vf', filter, '-frames:v', String(limit), '-fps_mode', 'passthrough', '-threads', '1', '-flags', '+bitexact', '-q:v', '2', '-f', 'mpjpeg', '-']
  const ffmpeg = startFfmpeg(tools.ffmpeg, ['-loglevel', 'info', '-copyts', ...input, ...output], AbortSignal.any([signal, AbortSignal.timeout(patience * cpu)]), {
    memory,
    cpu,
    onLine,
  })
  const jpegs: Buffer[] = []
  for await (const jpeg of ffmpeg.jpegs) jpegs.push(jpeg)
  const code = await ffmpeg.ended
  signal.throwIfAborted()
  if (code !== null && isNotRun(code)) throw new Fault('TOOL_MISSING', `${tools.ffmpeg} cannot be run: ${ffmpeg.said()}`)
  // killed by the time limit, or for memory: what came out by then is no account of the clip
  if (code === null) throw new Fault('CLIP_UNREADABLE', `Its frames could not be decoded within ${showMs(cpu)} of CPU time`)
  // a frame is named by its time: of two that a container gives the same, the first is kept
  const byTime = new Map<Us, Buffer>()
  for (const [at, jpeg] of jpegs.entries()) {
    const ptsUs = times[at]
    if (ptsUs !== undefined && !byTime.has(ptsUs)) byTime.set(ptsUs, jpeg)
  }
  const pictures = [...byTime].map(([ptsUs, jpeg]) => ({ jpeg, ptsUs }))
  if (pictures.length === 0) throw new Fault('CLIP_UNREADABLE', 'No frame of the clip could be decoded')
  return pictures
}
