/** One picture of a camera, as it would be kept: masked and made smaller. */
import { Fault } from '@frameloop/kit/fault'
import { openLog } from '@frameloop/kit/log'
import { watched } from './capture/camera-state.ts'
import { finishPicture } from './capture/finish.ts'
import { openSource } from './capture/open-source.ts'
import type { Captured } from './capture/source.ts'
import type { AgentSettings } from './config.ts'

const limit = { first: 20_000, next: 20_000 }

/** Throws `CAMERA_UNKNOWN`, or what the source says. */
export async function takeSnapshot(config: AgentSettings, cameraId: string): Promise<Captured> {
  const settings = config.cameras.find(({ id }) => id === cameraId)
  if (!settings) throw new Fault('CAMERA_UNKNOWN', `There is no camera ${cameraId}; there are ${config.cameras.map(({ id }) => id).join(', ')}`)
  // one picture now, however seldom they are kept
  const { framesPerSecond: _, motion: __, ...atUsualRate } = settings
  const source = openSource(atUsualRate)
  const connection = new AbortController()
  const context = { log: openLog('snapshot', 'silent'), ffmpeg: config.ffmpeg, ffprobe: config.ffprobe, wantsGray: false, say: () => {} }
  for await (const picture of watched(source.pictures(context, connection.signal), source.patience ?? limit, () => connection.abort())) {
    return source.finishes || picture.kind === 'clip' ? picture : await finishPicture(picture, settings)
  }
  throw new Fault('SOURCE_UNREADABLE', `Camera ${cameraId} gave no picture`)
}
