/** What a camera is to the agent: something to connect to that then gives pictures, and a state that people understand. */
import type { Log } from '@frameloop/kit/log'
import type { EpochMs, Ms, Us } from '@frameloop/kit/units'
import { type CameraSettings, ratesOf } from '../config.ts'
import type { ClipRing } from './clip-ring.ts'

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
  /** The picture as the motion gate sees it: `motionWidth` × `motionHeight` gray, where the source has it already. */
  readonly gray?: Uint8Array
}

export type CameraState = 'connecting' | 'streaming' | 'stalled' | 'backing off' | 'refused' | 'wrong' | 'ended'

/** Why a source gives no pictures. Anything else it throws counts as `wrong`. */
export class SourceFailure extends Error {
  readonly state: 'backing off' | 'refused' | 'wrong'

  constructor(state: 'backing off' | 'refused' | 'wrong', sentence: string, cause?: unknown) {
    super(sentence, cause === undefined ? undefined : { cause })
    this.name = 'SourceFailure'
    this.state = state
  }
}

/** What a status that refuses means, whether HTTP or RTSP says it; undefined for others. */
export function refusalOf(status: number, what: 'picture' | 'stream'): SourceFailure | undefined {
  if (status === 401) return new SourceFailure('refused', 'the camera refuses the user name or password (401)')
  if (status === 403) return new SourceFailure('refused', 'the camera forbids access (403)')
  if (status === 404) return new SourceFailure('refused', `the camera has no ${what} at this path (404)`)
  return undefined
}

/** How long the pictures of a camera may keep somebody waiting who asked for so many a second. */
export function patienceOf(settings: CameraSettings, first: Ms = 15_000): { readonly first: Ms; readonly next: Ms } {
  const interval = 1000 / ratesOf(settings).asked
  return { first: first + interval, next: Math.max(5_000, 3 * interval) }
}

/** What stands in an address for something else, as `%20` does; a `%` that stands for nothing is meant as it is. */
export function decoded(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

/** The login that a camera's settings or its address, a URL, say. */
export function loginOf({ address, username, password }: CameraSettings): { readonly username: string; readonly password: string } | undefined {
  const url = new URL(address)
  const name = username ?? decoded(url.username)
  return name ? { username: name, password: password ?? decoded(url.password) } : undefined
}

export interface SourceContext {
  readonly log: Log
  readonly ffmpeg: string
  readonly ffprobe: string
  /** Whether pictures should come with `gray`. */
  readonly wantsGray: boolean
  /** Where the stream itself goes, for clips. */
  readonly ring?: ClipRing
  /** Something worth telling while pictures come. */
  readonly say: (message: string) => void
}

export interface Source {
  readonly kind: 'simulator' | 'file' | 'folder' | 'rtsp' | 'onvif' | 'http' | 'v4l2'
  /** Longest silence before the connection counts as dead; absent where silence is normal. */
  readonly patience?: { readonly first: Ms; readonly next: Ms }
  /** What it has it still has later: while the spool is full it waits, and nothing is given up for it. */
  readonly waits?: boolean
  /** Masks and size are taken care of already. */
  readonly finishes: boolean
  /** One connection. Ends when the material has ended, throws when it failed. */
  pictures(context: SourceContext, signal: AbortSignal): AsyncIterable<Captured>
}
