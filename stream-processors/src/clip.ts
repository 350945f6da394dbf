/** Clips through ffprobe and ffmpeg: a file that we wrote, no network, a time limit. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Fault } from '@frameloop/kit/fault'
import { runFfprobe, startFfmpeg } from '@frameloop/kit/ffmpeg'
import type { Us } from '@frameloop/kit/units'

const timeLimit = 60_000
/** Demuxers that read other files or addresses (hls, concat, …) stay out: the format must be one of these. */
const containers: Readonly<Record<string, string>> = { 'mov,mp4,m4a,3gp,3g2,mj2': 'mp4', 'matroska,webm': 'mkv', avi: 'avi' }

export interface ClipInfo {
  readonly format: string
  readonly width: number
  readonly height: number
  readonly durationUs: Us
  /** Presentation times of all frames from the first one on, ascending. */
  readonly times: readonly Us[]
}

/** The magic of the containers above: anything else never reaches ffmpeg. */
export function sniffClip(bytes: Uint8Array): string | undefined {
  const text = (from: number, to: number): string => Buffer.from(bytes.subarray(from, to)).toString('latin1')
  if (text(4, 8) === 'ftyp') return 'mp4'
  if (text(0, 4) === '\x1a\x45\xdf\xa3') return 'mkv'
  if (text(0, 4) === 'RIFF' && text(8, 12) === 'AVI ') return 'avi'
  return undefined
}

export interface ClipTools {
  readonly ffmpeg: string
  readonly ffprobe: string
}

async function withFile<Result>(bytes: Uint8Array, use: (path: string) => Promise<Result>): Promise<Result> {
  const folder = await mkdtemp(join(tmpdir(), 'frameloop-clip-'))
  try {
    const path = join(folder, 'clip')
    await writeFile(path, bytes)
    return await use(path)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Throws `CLIP_UNREADABLE`. */
export async function probeClip(bytes: Uint8Array, tools: ClipTools, signal: AbortSignal): Promise<ClipInfo> {
  const format = sniffClip(bytes)
  if (!format) throw new Fault('CLIP_UNREADABLE', 'The bytes are no MP4, Matroska or AVI file')
  return withFile(bytes, async (path) => {
    const limit = AbortSignal.any([signal, AbortSignal.timeout(timeLimit)])
    const probe = await runFfprobe(
      tools.ffprobe,
      ['-protocol_whitelist', 'file', '-select_streams', 'v:0', '-show_entries', 'format=format_name,duration:stream=width,height:packet=pts_time', '-of', 'json', path],
      limit,
    )
    signal.throwIfAborted()
    if (probe.code !== 0) throw new Fault('CLIP_UNREADABLE', `The clip cannot be read: ${probe.said.split('\n')[0]}`)
    const found = JSON.parse(probe.out) as {
      packets?: { pts_time?: string }[]
      streams?: { width?: number; height?: number }[]
      format?: { format_name?: string; duration?: string }
    }
    const times = (found.packets ?? [])
      .map(({ pts_time }) => Number.parseFloat(pts_time ?? ''))
      .filter(Number.isFinite)
      .sort((a, b) => a - b)
    const stream = found.streams?.[0]
    const container = containers[found.format?.format_name ?? '']
    if (!container || !stream?.width || times.length === 0) throw new Fault('CLIP_UNREADABLE', 'The clip holds no video in MP4, Matroska or AVI')
    const first = times[0] ?? 0
    return {
      format: container,
      width: stream.width,
      height: stream.height ?? 0,
      durationUs: Math.round(Number.parseFloat(found.format?.duration ?? '0') * 1e6),
      times: times.map((time) => Math.round((time - first) * 1e6)),
    }
  })
}

/** The frames to take at `perSecond`: the first, then each that is due. Indexes into `times`. */
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

/** The chosen frames as JPEGs, as many as can be decoded: a truncated clip gives what it holds. */
export async function extractFrames(bytes: Uint8Array, indexes: readonly number[], tools: ClipTools, signal: AbortSignal): Promise<Buffer[]> {
  return withFile(bytes, async (path) => {
    const limit = AbortSignal.any([signal, AbortSignal.timeout(timeLimit)])
    const select = indexes.map((index) => `eq(n\\,${index})`).join('+')
    const ffmpeg = startFfmpeg(
      tools.ffmpeg,
      [
        '-protocol_whitelist',
        'file,pipe',
        '-i',
        path,
        '-map',
        '0:v:0',
        '-vf',
        `select=${select}`,
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
      ],
      limit,
    )
    const jpegs: Buffer[] = []
    for await (const jpeg of ffmpeg.jpegs) jpegs.push(jpeg)
    const code = await ffmpeg.ended
    signal.throwIfAborted()
    // killed by the time limit, or for memory: what came out by then is no account of the clip
    if (code === null) throw new Fault('CLIP_UNREADABLE', `Its frames could not be decoded within ${timeLimit / 1000} s`)
    if (jpegs.length === 0) throw new Fault('CLIP_UNREADABLE', `No frame of the clip could be decoded: ${ffmpeg.said().split('\n')[0]}`)
    return jpegs
  })
}
