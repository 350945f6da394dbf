/** What to give up when the spool is full: a decision without side effects. */
import type { Bytes } from '@frameloop/kit/units'

export interface Evictable {
  readonly cameraId: string
  readonly seq: number
  readonly bytes: Bytes
  /** Being uploaded or stored already: giving it up would save nothing. */
  readonly busy: boolean
}

/**
 * The frames to evict, oldest first, until `incoming` more bytes fit into `capacity`. The newest frame of each camera
 * is kept, so that a picture of every place survives; `entries` are in spool order.
 */
export function chooseEvictions<Entry extends Evictable>(entries: readonly Entry[], used: Bytes, incoming: Bytes, capacity: Bytes): Entry[] {
  let excess = used + incoming - capacity
  if (excess <= 0) return []
  const newest = new Map<string, Entry>()
  for (const entry of entries) newest.set(entry.cameraId, entry)
  const evicted: Entry[] = []
  for (const entry of entries) {
    if (excess <= 0) break
    if (entry.busy || newest.get(entry.cameraId) === entry) continue
    evicted.push(entry)
    excess -= entry.bytes
  }
  return evicted
}
