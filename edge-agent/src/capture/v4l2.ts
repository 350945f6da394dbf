/** A camera of this machine (USB), through Video4Linux. */
import { type CameraSettings, ratesOf } from '../config.ts'
import { ffmpegPictures } from './ffmpeg-stream.ts'
import { patienceOf, type Source } from './source.ts'

export function v4l2Source(device: string, settings: CameraSettings): Source {
  const input = ['-f', 'v4l2', '-framerate', String(Math.max(5, Math.ceil(ratesOf(settings).asked))), '-i', device]
  return {
    kind: 'v4l2',
    patience: patienceOf(settings),
    finishes: true,
    pictures: (context, signal) => ffmpegPictures(input, settings, device, context, signal),
  }
}
