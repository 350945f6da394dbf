/** Live first: what was captured just now goes out before what has waited, as decisions without side effects. */
import type { EpochMs, Ms } from '@frameloop/kit/units'

/** Frames older than this travel on the backlog lane, behind nobody who is live. */
const liveWindow: Ms = 30_000
export type Lane = 'live' | 'backlog'

export function laneOf(capturedAt: EpochMs, now: EpochMs): Lane {
  return now - capturedAt > liveWindow ? 'backlog' : 'live'
}

/** Which lanes may go out. */
export type Opening = 'all' | 'live' | 'nothing'

/** `windows`: `HH:MM-HH:MM` of the machine's own clock, also over midnight; none: always. Outside of them goes what `outside` says. */
export function openingAt(windows: readonly string[], outside: Exclude<Opening, 'all'>, at: Date): Opening {
  const minute = at.getHours() * 60 + at.getMinutes()
  const isOpen = windows.some((window) => {
    const [from = 0, to = 0] = window.split('-').map((time) => Number(time.slice(0, 2)) * 60 + Number(time.slice(3, 5)))
    return from <= to ? from <= minute && minute < to : minute >= from || minute < to
  })
  return windows.length === 0 || isOpen ? 'all' : outside
}

interface Queued {
  readonly head: { readonly capturedAt: EpochMs }
}

/** A list that is taken from at its beginning, without moving the rest each time. */
class Queue<Item> {
  #items: Item[] = []
  #at = 0

  push(item: Item): void {
    this.#items.push(item)
  }

  back(item: Item): void {
    if (this.#at > 0) this.#items[--this.#at] = item
    else this.#items.unshift(item)
  }

  peek(): Item | undefined {
    return this.#items[this.#at]
  }

  take(): Item | undefined {
    const item = this.#items[this.#at]
    if (item === undefined) return undefined
    this.#at += 1
    if (this.#at > 1_024 && this.#at * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#at)
      this.#at = 0
    }
    return item
  }
}

/** What is to be uploaded, live first, each lane in the order of the spool. */
export class UploadQueue<Item extends Queued> {
  readonly #live = new Queue<Item>()
  readonly #backlog = new Queue<Item>()

  add(items: Iterable<Item>, now: EpochMs): void {
    for (const item of items) (laneOf(item.head.capturedAt, now) === 'live' ? this.#live : this.#backlog).push(item)
  }

  /** The next one; `reserved`: how many of the free places are for live ones only. */
  take(now: EpochMs, free: number, reserved: number): Item | undefined {
    // whoever has waited too long is backlog by now
    for (let item = this.#live.peek(); item !== undefined && laneOf(item.head.capturedAt, now) === 'backlog'; item = this.#live.peek()) {
      this.#live.take()
      this.#backlog.push(item)
    }
    return this.#live.take() ?? (free > reserved ? this.#backlog.take() : undefined)
  }

  /** One that could not be uploaded comes next again. */
  again(item: Item, now: EpochMs): void {
    ;(laneOf(item.head.capturedAt, now) === 'live' ? this.#live : this.#backlog).back(item)
  }
}
