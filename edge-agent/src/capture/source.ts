/** What a camera is to the agent: an endless (or ending) sequence of pictures, and a state that people understand. */
import type { Log } from '@frameloop/kit/log'
import type { EpochMs, Us } from '@frameloop/kit/units'

export interface Captured {
  readonly bytes: Buffer
  /** Without a dot: `jpg`, `png`, `mp4`. */
  readonly extension: string
  readonly kind: 'image' | 'clip'
  readonly capturedAt: EpochMs
  /** Position in the file or in the simulated scene; absent for a live camera. */
  readonly mediaOffsetUs?: Us
  readonly width: number
  readonly height: number
  readonly sourceName: string
  /** The first picture of another pass over the same material: the agent mints a new epoch. */
  readonly newPass: boolean
}

export type CameraState = 'connecting' | 'streaming' | 'stalled' | 'backing off' | 'refused' | 'wrong' | 'ended'

export interface SourceContext {
  readonly log: Log
  readonly ffmpeg: string
  readonly ffprobe: string
  readonly report: (state: CameraState, message: string) => void
}

export interface Source {
  readonly kind: 'simulator' | 'file' | 'folder' | 'rtsp'
  frames(context: SourceContext, signal: AbortSignal): AsyncIterable<Captured>
}
