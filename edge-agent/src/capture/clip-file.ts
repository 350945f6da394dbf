/** A piece of a transport stream → an MP4 file, without decoding it. */
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { startFfmpeg } from '@frameloop/kit/ffmpeg'
import type { Clip } from './clip-ring.ts'

/** Undefined when ffmpeg cannot make one of it. `folder`: for the two files that are there for a moment. */
export async function clipFile(
  { transportStream }: Clip,
  name: string,
  { folder, ffmpeg }: { readonly folder: string; readonly ffmpeg: string },
  signal: AbortSignal,
): Promise<Buffer | undefined> {
  const [stream, file] = [join(folder, `clip-${name}.ts`), join(folder, `clip-${name}.mp4`)]
  try {
    await writeFile(stream, transportStream, { mode: 0o600 })
    const child = startFfmpeg(ffmpeg, ['-f', 'mpegts', '-i', stream, '-c', 'copy', '-movflags', '+faststart', '-y', file], signal)
    return (await child.ended) === 0 ? await readFile(file) : undefined
  } finally {
    await Promise.all([stream, file].map((path) => rm(path, { force: true })))
  }
}
