/**
 * One state machine for all cameras, as a decision without side effects:
 *   connecting ─▶ streaming ─▶ (silence) stalled ─▶ backing off ─▶ connecting …
 *        └─▶ refused, wrong: asks again only every half minute, so that no account is locked and no camera is hammered
 * ffmpeg's exit code and its own timeout prove nothing (measured: 0 after a dead link), so pictures are what is watched.
 */
import { rootMessage } from '@frameloop/kit/fault'
import { backoffPause } from '@frameloop/kit/retry'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { type CameraState, SourceFailure } from './source.ts'

export class Stalled extends Error {}

const refusedPause: Ms = 30_000
const paceWindow: Ms = 10_000
const usual = { first: 250, cap: 15_000 }

export interface AfterFailure {
  readonly state: CameraState
  readonly message: string
  /** Until the next attempt. */
  readonly pause: Ms
}

/** `failures`: in a row, this one included. `random` is in 0..1. */
export function afterFailure(thrown: unknown, failures: number, random: number): AfterFailure {
  const pause = backoffPause(failures, usual, random)
  if (thrown instanceof Stalled) return { state: 'stalled', message: thrown.message, pause }
  if (!(thrown instanceof SourceFailure)) return { state: 'wrong', message: rootMessage(thrown), pause }
  return { state: thrown.state, message: thrown.message, pause: thrown.state === 'backing off' ? pause : refusedPause }
}

/** Whether a camera gives as many pictures as are asked of it: a link that is too thin delivers later and later without ever falling silent. */
export class Pace {
  readonly #asked: number
  #since: EpochMs | undefined
  #came = 0

  /** `asked`: pictures a second. */
  constructor(asked: number) {
    this.#asked = asked
  }

  /** For each picture. Every ten seconds a sentence, empty when all is well. */
  came(now: EpochMs): string | undefined {
    this.#since ??= now
    const took = now - this.#since
    if (took < paceWindow) {
      this.#came += 1
      return undefined
    }
    const rate = this.#came / (took / 1000)
    this.#since = now
    this.#came = 1
    return rate < 0.7 * this.#asked ? `it gives ${rate.toFixed(1)} of ${this.#asked} pictures a second` : ''
  }
}

/** The pictures, or an error when none comes for longer than patience allows; `give up` is called so that the source lets go. */
export async function* watched<Item>(pictures: AsyncIterable<Item>, patience: { readonly first: Ms; readonly next: Ms } | undefined, giveUp: () => void): AsyncGenerator<Item> {
  const iterator = pictures[Symbol.asyncIterator]()
  let limit = patience?.first
  try {
    for (;;) {
      const next = iterator.next()
      const result = limit === undefined ? await next : await within(next, limit)
      if (result.done) return
      yield result.value
      limit = patience?.next
    }
  } finally {
    giveUp()
    // a source that hangs must not hang its camera
    void iterator.return?.()?.then(undefined, () => {})
  }
}

function within<Result>(promise: Promise<Result>, limit: Ms): Promise<Result> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      promise.catch(() => {})
      reject(new Stalled(`no picture for ${Math.round(limit / 100) / 10} s although nothing else is wrong`))
    }, limit)
    promise.then(resolve, reject).finally(() => clearTimeout(timer))
  })
}
