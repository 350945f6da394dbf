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
    // one that ends when it begins is a whole day
    return from < to ? from <= minute && minute < to : minute >= from || minute < to
  })
  return windows.length === 0 || isOpen ? 'all' : outside
}

/** Live frames come, when the last one went out less than this ago. */
const liveLately: Ms = 2_000

/** How many of the places for uploads what has waited may take. While live frames come, one: it gets what they leave. */
export function backlogPlaces(opening: Exclude<Opening, 'nothing'>, places: number, sinceLive: Ms): number {
  if (opening === 'live') return 0
  return sinceLive < liveLately ? 1 : Math.max(1, places - 2)
}

/** Long for a store that is near and short for one that is far: there a link is what is scarce, here a core or a disk that live frames want too. */
const longestRest: Ms = 20

/** How long what has waited rests after an upload that `took` so long, while live frames come: as long again, so that most of them find nothing before them. */
export function backlogRest(took: Ms, sinceLive: Ms): Ms {
  return sinceLive < liveLately ? Math.min(longestRest, took) : 0
}

interface Queued {
  readonly cameraId: string
  readonly head: { readonly capturedAt: EpochMs; readonly endedAt?: EpochMs }
}

/** When there was something to upload: a clip is as new as its end. */
export const takenAt = ({ capturedAt, endedAt = capturedAt }: Queued['head']): EpochMs => endedAt

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

  /** At the beginning again, in their order. */
  backAll(items: readonly Item[]): void {
    this.#items = [...items, ...this.#items.slice(this.#at)]
    this.#at = 0
  }

  get length(): number {
    return this.#items.length - this.#at
  }

  /** Only those that are still wanted stay. */
  filter(holds: (item: Item) => boolean): void {
    this.#items = this.#items.slice(this.#at).filter(holds)
    this.#at = 0
  }

  peek(ahead = 0): Item | undefined {
    return this.#items[this.#at + ahead]
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

/** What was given up stays in a queue until it is met; when it is most of a queue, and more than this, it is looked for. */
const sparse = 1_000

/** What is to be uploaded, live first, each lane in the order of the spool. A camera can be held: the others go on. */
export class UploadQueue<Item extends Queued> {
  readonly #lanes: Readonly<Record<Lane, Queue<Item>>> = { live: new Queue(), backlog: new Queue() }
  /** What was met of cameras that are held, in its order. */
  readonly #aside = new Map<string, Readonly<Record<Lane, Item[]>>>()

  add(items: Iterable<Item>, now: EpochMs): void {
    for (const item of items) this.#lanes[laneOf(takenAt(item.head), now)].push(item)
  }

  /** The next one; `alsoBacklog`: whether it may be one that has waited. */
  take(now: EpochMs, alsoBacklog: boolean): Item | undefined {
    const { live, backlog } = this.#lanes
    // whoever has waited too long is backlog by now
    for (let item = live.peek(); item !== undefined && laneOf(takenAt(item.head), now) === 'backlog'; item = live.peek()) {
      live.take()
      backlog.push(item)
    }
    return this.#takeFrom('live') ?? (alsoBacklog ? this.#takeFrom('backlog') : undefined)
  }

  #takeFrom(lane: Lane): Item | undefined {
    for (;;) {
      const item = this.#lanes[lane].take()
      const aside = item && this.#aside.get(item.cameraId)
      if (!item || !aside) return item
      aside[lane].push(item)
    }
  }

  /** One that could not be uploaded comes next again. */
  again(item: Item, now: EpochMs): void {
    this.#lanes[laneOf(takenAt(item.head), now)].back(item)
  }

  /** Forgets what was given up, now and then; `waiting`: how many there are that were not. */
  prune(waiting: number, holds: (item: Item) => boolean): void {
    for (const lane of Object.values(this.#lanes)) if (lane.length > 2 * waiting + sparse) lane.filter(holds)
    for (const [cameraId, { live, backlog }] of this.#aside)
      if (live.length + backlog.length > 2 * waiting + sparse) this.#aside.set(cameraId, { live: live.filter(holds), backlog: backlog.filter(holds) })
  }

  hold(cameraId: string): void {
    if (!this.#aside.has(cameraId)) this.#aside.set(cameraId, { live: [], backlog: [] })
  }

  /** What was held comes before everything else again. */
  release(cameraId: string): void {
    const aside = this.#aside.get(cameraId)
    this.#aside.delete(cameraId)
    for (const lane of ['live', 'backlog'] as const) if (aside && aside[lane].length > 0) this.#lanes[lane].backAll(aside[lane])
  }
}

/** What is to be announced: of each lane and camera its frames in the order they came. */
export class AnnouncementQueue<Item extends Queued & { readonly stored: unknown }> {
  readonly #lanes: Readonly<Record<Lane, Map<string, Queue<Item>>>> = { live: new Map(), backlog: new Map() }

  add(items: Iterable<Item>, now: EpochMs): void {
    for (const item of items) this.#of(laneOf(takenAt(item.head), now), item.cameraId).push(item)
  }

  /**
   * Of each camera the leading frames that are stored, one of each in turn: order holds, and one slow upload delays only its
   * own. They stay as long as `holds` says of them that they are still to be delivered.
   */
  ready(lane: Lane, limit: number, now: EpochMs, holds: (item: Item) => boolean): Item[] {
    const queues = [...this.#lanes[lane]].map(([cameraId, queue]) => {
      for (let item = queue.peek(); item !== undefined; item = queue.peek()) {
        const isLate = lane === 'live' && laneOf(takenAt(item.head), now) === 'backlog'
        if (holds(item) && !isLate) break
        queue.take()
        if (isLate) this.#of('backlog', cameraId).push(item)
      }
      return queue
    })
    const ready: Item[] = []
    let leading = queues.map((queue) => ({ queue, ahead: 0 }))
    while (leading.length > 0) {
      leading = leading.filter((at) => {
        let item = at.queue.peek(at.ahead)
        // what was given up holds nobody back, wherever it stands
        for (; item !== undefined && !holds(item); item = at.queue.peek(at.ahead)) at.ahead += 1
        if (ready.length >= limit || !item?.stored) return false
        ready.push(item)
        at.ahead += 1
        return true
      })
    }
    return ready
  }

  /** Forgets what was given up, now and then; `waiting`: how many there are that were not. */
  prune(waiting: number, holds: (item: Item) => boolean): void {
    for (const lane of Object.values(this.#lanes)) for (const queue of lane.values()) if (queue.length > 2 * waiting + sparse) queue.filter(holds)
  }

  #of(lane: Lane, cameraId: string): Queue<Item> {
    const queue = this.#lanes[lane].get(cameraId) ?? new Queue<Item>()
    this.#lanes[lane].set(cameraId, queue)
    return queue
  }
}
