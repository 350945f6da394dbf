/** What is nearly done when the agent is told to end. */
import type { Ms } from '@frameloop/kit/units'

/** At most this long the end of an agent waits for a clip that is recorded and for uploads that are under way. */
export const lastMoment: Ms = 5_000

/** Aborts a while after `signal`: what is nearly done is done. */
export function soonAfter(signal: AbortSignal, pause: Ms): { readonly signal: AbortSignal } & Disposable {
  const late = new AbortController()
  let timer: NodeJS.Timeout | undefined
  const begin = (): void => {
    timer = setTimeout(() => late.abort(), pause)
  }
  if (signal.aborted) begin()
  else signal.addEventListener('abort', begin, { once: true })
  return {
    signal: late.signal,
    [Symbol.dispose]() {
      clearTimeout(timer)
      signal.removeEventListener('abort', begin)
    },
  }
}
