/** Backoff with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter", 2015) as a pure schedule, and the loop that sleeps on it. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Ms } from './units.ts'

export interface Backoff {
  readonly first: Ms
  readonly cap: Ms
}

/** The pause before attempt `attempt` (1 = first retry): uniform in [half, whole] of the capped exponential. `random` is in 0..1. */
export function backoffPause(attempt: number, backoff: Backoff, random: number): Ms {
  const whole = Math.min(backoff.cap, backoff.first * 2 ** Math.min(attempt - 1, 30))
  return whole / 2 + (whole / 2) * random
}

export interface RetryOptions {
  readonly backoff: Backoff
  /** Whether the failure may pass; others are thrown at once. */
  readonly isTransient: (thrown: unknown) => boolean
  readonly onRetry?: (thrown: unknown, attempt: number, pause: Ms) => void
  /** Attempts in all; unlimited when absent. */
  readonly attempts?: number
}

/** Calls `act` until it succeeds, fails for good, or the signal is aborted. */
export async function retry<Result>(act: () => Promise<Result>, options: RetryOptions, signal: AbortSignal): Promise<Result> {
  for (let attempt = 1; ; attempt += 1) {
    signal.throwIfAborted()
    try {
      return await act()
    } catch (thrown) {
      if (signal.aborted || !options.isTransient(thrown) || attempt === options.attempts) throw thrown
      const pause = backoffPause(attempt, options.backoff, Math.random())
      options.onRetry?.(thrown, attempt, pause)
      await sleep(pause, undefined, { signal })
    }
  }
}

/** Asks until the answer is not undefined, or `within` has passed (then undefined). The pause is between questions. */
export async function until<Answer>(ask: () => Promise<Answer | undefined> | Answer | undefined, within: Ms, pause: Ms, signal?: AbortSignal): Promise<Answer | undefined> {
  const deadline = Date.now() + within
  for (;;) {
    const answer = await ask()
    if (answer !== undefined) return answer
    if (Date.now() >= deadline) return undefined
    await sleep(pause, undefined, signal ? { signal } : {})
  }
}
