/** Whether a camera still sees: what small gray pictures of it say, as a decision without side effects on anything else. */
import type { Ms } from '@frameloop/kit/units'
import { motionHeight, motionWidth } from './motion.ts'

export type HealthMark = 'dark' | 'blown out' | 'covered' | 'blurred' | 'frozen' | 'moved'

const pixels = motionWidth * motionHeight
/** A street where nothing moves still has the noise of its sensor; so much without any change is a picture that hangs. */
const frozenAfter: Ms = 30_000
/** How quickly the view that a camera should have follows what it has: an hour of samples every ten seconds. */
const alpha = 1 / 360
const movedBelow = 0.4
/** In a row, before it is believed: somebody may only stand in front of it. */
const movedSamples = 6

interface Statistics {
  readonly mean: number
  readonly deviation: number
  /** Share of pixels at the upper end. */
  readonly bright: number
  /** Mean absolute Laplacian: what edges there are. */
  readonly edges: number
}

function statisticsOf(gray: Uint8Array): Statistics {
  let [sum, squares, bright, edges] = [0, 0, 0, 0]
  for (let at = 0; at < pixels; at += 1) {
    const value = gray[at] as number
    sum += value
    squares += value * value
    if (value >= 250) bright += 1
  }
  for (let row = 1; row < motionHeight - 1; row += 1)
    for (let at = row * motionWidth + 1; at < (row + 1) * motionWidth - 1; at += 1)
      edges += Math.abs(4 * (gray[at] as number) - (gray[at - 1] as number) - (gray[at + 1] as number) - (gray[at - motionWidth] as number) - (gray[at + motionWidth] as number))
  const mean = sum / pixels
  return { mean, deviation: Math.sqrt(Math.max(0, squares / pixels - mean * mean)), bright: bright / pixels, edges: edges / pixels }
}

/** Pearson's correlation of two pictures: 1 the same view, whatever the light; near 0 another one. */
function correlation(gray: Uint8Array, view: Float32Array): number {
  let [a, b, aa, bb, ab] = [0, 0, 0, 0, 0]
  for (let at = 0; at < pixels; at += 1) {
    const [x, y] = [gray[at] as number, view[at] as number]
    a += x
    b += y
    aa += x * x
    bb += y * y
    ab += x * y
  }
  const spread = Math.sqrt((aa - (a * a) / pixels) * (bb - (b * b) / pixels))
  return spread < 1 ? 1 : (ab - (a * b) / pixels) / spread
}

export class CameraHealth {
  #view: Float32Array | undefined
  #last: { readonly gray: Uint8Array; readonly since: Ms } | undefined
  #strange = 0

  /** One sample, every few seconds. */
  look(gray: Uint8Array, at: Ms): HealthMark[] {
    const { mean, deviation, bright, edges } = statisticsOf(gray)
    const marks: HealthMark[] = []
    if (mean < 16) marks.push('dark')
    if (bright > 0.6) marks.push('blown out')
    const isBlind = marks.length > 0
    if (!isBlind && deviation < 6) marks.push('covered')
    else if (!isBlind && edges < 2.5) marks.push('blurred')

    const isSame = this.#last !== undefined && gray.every((value, pixel) => value === this.#last?.gray[pixel])
    if (!isSame) this.#last = { gray: gray.slice(), since: at }
    else if (at - (this.#last?.since ?? at) >= frozenAfter) marks.push('frozen')

    // what cannot be seen has not moved
    if (marks.length === 0) {
      const view = this.#view
      if (view === undefined) this.#view = Float32Array.from(gray)
      else {
        this.#strange = correlation(gray, view) < movedBelow ? this.#strange + 1 : 0
        for (let pixel = 0; pixel < pixels; pixel += 1) view[pixel] = (view[pixel] as number) + alpha * ((gray[pixel] as number) - (view[pixel] as number))
      }
      if (this.#strange >= movedSamples) marks.push('moved')
    }
    return marks
  }
}
