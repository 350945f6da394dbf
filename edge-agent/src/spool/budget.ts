/** What to give up when the spool is full: a decision without side effects. */
import type { Bytes } from '@frameloop/kit/units'

export interface Evictable {
  readonly cameraId: string
  readonly seq: number
  readonly bytes: Bytes
  /** Something happened on it. */
  readonly isEvent: boolean
  /** Being uploaded or stored already: giving it up would save nothing. */
  readonly busy: boolean
}

/** Thinned down to one of 2^4 before anything is cut off. */
const mostThinned = 4
/** Somewhat more than is needed is given up at once, so that not every frame has to look for room. */
const spare = 1 / 256

/** How early a frame is thinned out: every second one first, then every second of those left … */
function thinning(seq: number): number {
  let level = 0
  for (let rest = seq; rest % 2 === 0 && level < mostThinned; rest /= 2) level += 1
  return level
}

/**
 * The frames to evict until `incoming` more bytes fit into `capacity`; `entries` are in spool order, oldest first.
 * The routine goes before events; both are thinned evenly before they are cut, oldest first. The newest frame of each
 * camera is kept, so that a picture of every place survives.
 */
export function chooseEvictions<Entry extends Evictable>(entries: readonly Entry[], used: Bytes, incoming: Bytes, capacity: Bytes): Entry[] {
  let excess = used + incoming - capacity
  if (excess <= 0) return []
  excess += capacity * spare
  const newest = new Map<string, Entry>()
  for (const entry of entries) newest.set(entry.cameraId, entry)
  const worth = ({ isEvent, seq }: Entry): number => (isEvent ? mostThinned + 1 : 0) + thinning(seq)
  const byWorth = Array.from({ length: 2 * (mostThinned + 1) }, (): Entry[] => [])
  for (const entry of entries) if (!entry.busy && newest.get(entry.cameraId) !== entry) byWorth[worth(entry)]?.push(entry)
  const evicted: Entry[] = []
  for (const entry of byWorth.flat()) {
    if (excess <= 0) break
    evicted.push(entry)
    excess -= entry.bytes
  }
  return evicted
}
