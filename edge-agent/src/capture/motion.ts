/**
 * Whether something moves: a running average of small gray pictures, as a decision without side effects on anything else.
 * Measured on the test footage: this keeps every picture in which a background subtractor finds something, where ffmpeg's
 * scene filter drops most of them.
 */
import type { EpochMs, Ms } from '@frameloop/kit/units'
import type { Motion } from '../config.ts'

export const motionWidth = 160
export const motionHeight = 90
const pixels = motionWidth * motionHeight
/** How quickly what stays becomes background. */
const alpha = 0.05
/** A pixel has changed when it differs by so much of 255 from the background: above the noise of sensors and codecs. */
const pixelThreshold = 18

type Area = readonly [number, number, number, number]

function fill(mask: Uint8Array, [x, y, width, height]: Area, value: 0 | 1): void {
  const [left, top] = [Math.floor(x * motionWidth), Math.floor(y * motionHeight)]
  const [right, bottom] = [Math.min(motionWidth, Math.ceil((x + width) * motionWidth)), Math.min(motionHeight, Math.ceil((y + height) * motionHeight))]
  for (let row = top; row < bottom; row += 1) mask.fill(value, row * motionWidth + left, row * motionWidth + Math.max(left, right))
}

export interface Judgement {
  readonly keep: boolean
  /** Share of the watched pixels that have changed, 0..1. */
  readonly changed: number
  readonly why: 'motion' | 'heartbeat' | 'still'
}

export class MotionGate {
  readonly #settings: Motion
  readonly #watched = new Uint8Array(pixels)
  readonly #count: number
  /** Running average, one float per pixel; undefined before the first picture. */
  #background: Float32Array | undefined
  #movedAt: EpochMs = Number.NEGATIVE_INFINITY
  #keptAt: EpochMs = Number.NEGATIVE_INFINITY
  #beganAt: EpochMs = Number.NEGATIVE_INFINITY
  /** When the next picture of a motion is due. */
  #dueAt: EpochMs = Number.NEGATIVE_INFINITY
  /** Between pictures that are kept while something moves; 0: each. */
  readonly #interval: Ms

  /** `framesPerSecond`: kept while something moves, where a burst makes the source give more. */
  constructor(settings: Motion, framesPerSecond: number) {
    this.#settings = settings
    this.#interval = settings.burst ? 1000 / framesPerSecond : 0
    if (settings.areas.length === 0) this.#watched.fill(1)
    for (const area of settings.areas) fill(this.#watched, area, 1)
    for (const area of settings.ignore) fill(this.#watched, area, 0)
    this.#count = Math.max(
      1,
      this.#watched.reduce((sum, one) => sum + one, 0),
    )
  }

  judge(gray: Uint8Array, at: EpochMs): Judgement {
    const background = this.#background
    let changed = 0
    if (background === undefined) this.#background = Float32Array.from(gray)
    else {
      const watched = this.#watched
      for (let i = 0; i < pixels; i += 1) {
        const difference = (gray[i] as number) - (background[i] as number)
        background[i] = (background[i] as number) + alpha * difference
        if (watched[i] === 1 && (difference > pixelThreshold || difference < -pixelThreshold)) changed += 1
      }
    }
    const share = changed / this.#count
    const { threshold, hold, heartbeat, burst } = this.#settings
    // a clock that was set back: what lies in its future never was
    if (at < this.#keptAt || at < this.#movedAt) {
      this.#keptAt = Number.NEGATIVE_INFINITY
      this.#movedAt = Number.NEGATIVE_INFINITY
      this.#dueAt = Number.NEGATIVE_INFINITY
    }
    if (share >= threshold) {
      if (at - this.#movedAt > hold * 1000) this.#beganAt = at
      this.#movedAt = at
    }
    const sinceKept = at - this.#keptAt
    const isMotion = at - this.#movedAt <= hold * 1000
    const isBurst = burst !== undefined && at - this.#beganAt < burst.seconds * 1000
    const why = isMotion ? 'motion' : heartbeat > 0 && sinceKept >= heartbeat * 1000 ? 'heartbeat' : 'still'
    // pictures come a little early or late
    const keep = why === 'heartbeat' || (isMotion && (isBurst || at >= this.#dueAt - this.#interval * 0.1))
    if (keep) {
      this.#keptAt = at
      // not from this one on: its source gives more of them, and few at the very moment
      this.#dueAt = Math.max(Math.min(this.#dueAt, at) + this.#interval, at)
    }
    return { keep, changed: share, why }
  }
}
