/**
 * What was opened is closed, newest first, and every failure on the way is reported.
 * L1  Each `own` runs its closer exactly once, in reverse order of opening.
 * L2  A closer that fails does not keep the others from running.
 * L3  `signal` is aborted before the first closer runs, so loops end before what they use is closed.
 */
import { setMaxListeners } from 'node:events'
import { toError } from './fault.ts'

/** Why a signal was aborted: nobody asked for the end. */
export class ProcessFailed extends Error {}

export class Lifetime implements AsyncDisposable {
  readonly #closers: { readonly name: string; readonly close: () => unknown }[] = []
  readonly #controller = new AbortController()

  constructor() {
    // all that waits for something waits for the end as well
    setMaxListeners(0, this.#controller.signal)
  }

  /** Aborted when the lifetime begins to end. */
  get signal(): AbortSignal {
    return this.#controller.signal
  }

  /** Remembers how to close what was just opened, and hands it back. */
  own<Thing>(name: string, thing: Thing, close: (thing: Thing) => unknown): Thing {
    this.#closers.push({ name, close: () => close(thing) })
    return thing
  }

  /** A loop that runs until `signal` is aborted; the lifetime waits for it before it closes anything older. */
  run(name: string, loop: (signal: AbortSignal) => Promise<unknown>, onFailure: (error: Error) => void): void {
    const ended = loop(this.signal).catch((thrown: unknown) => {
      if (!this.signal.aborted) onFailure(toError(thrown))
    })
    this.own(name, ended, (promise) => promise)
  }

  async close(reason = new Error('the process is stopping')): Promise<Error[]> {
    this.#controller.abort(reason)
    const failures: Error[] = []
    for (let next = this.#closers.pop(); next; next = this.#closers.pop()) {
      try {
        await next.close()
      } catch (thrown) {
        failures.push(new Error(`closing ${next.name} failed`, { cause: thrown }))
      }
    }
    return failures
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const failures = await this.close()
    if (failures.length > 0) throw new AggregateError(failures, 'closing failed')
  }
}
