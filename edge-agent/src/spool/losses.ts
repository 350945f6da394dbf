/** What was lost and is still to be told, and how it is kept small: a long outage loses hundreds of thousands of frames. */
import type { EpochMs } from '@frameloop/kit/units'
import type { CameraId, Epoch } from '@frameloop/schemas/ids'

export interface Loss {
  readonly cameraId: CameraId
  readonly epoch: Epoch
  readonly seqFrom: number
  readonly seqTo: number
  readonly reason: 'evicted' | 'unreadable'
  readonly lostAt: EpochMs
}

/** The losses of one epoch for one reason: how many frames are skipped, how many are lost, how many are skipped … */
export interface PackedLosses extends Pick<Loss, 'cameraId' | 'epoch' | 'reason' | 'lostAt'> {
  readonly runs: readonly number[]
}

/** Ranges of lost frames, of each epoch and reason in order of seq; neighbours become one. */
export class Losses {
  readonly #groups = new Map<string, Loss[]>()

  constructor(losses: readonly Loss[] = []) {
    for (const loss of losses) this.add(loss)
  }

  static #groupOf({ cameraId, epoch, reason }: Loss): string {
    return `${cameraId} ${epoch} ${reason}`
  }

  get all(): Loss[] {
    return [...this.#groups.values()].flat()
  }

  first(limit: number): Loss[] {
    const found: Loss[] = []
    for (const ranges of this.#groups.values()) {
      if (found.length >= limit) break
      found.push(...ranges.slice(0, limit - found.length))
    }
    return found
  }

  add(loss: Loss): void {
    const ranges = this.#groups.get(Losses.#groupOf(loss)) ?? []
    this.#groups.set(Losses.#groupOf(loss), ranges)
    const from = firstEnding(ranges, loss.seqFrom - 1)
    let to = from
    let merged = loss
    for (let next = ranges[to]; next !== undefined && next.seqFrom <= loss.seqTo + 1; next = ranges[to]) {
      merged = { ...merged, seqFrom: Math.min(merged.seqFrom, next.seqFrom), seqTo: Math.max(merged.seqTo, next.seqTo), lostAt: Math.max(merged.lostAt, next.lostAt) }
      to += 1
    }
    ranges.splice(from, to - from, merged)
  }

  /** What a range has grown by since it was told stays. */
  remove(loss: Loss): void {
    const ranges = this.#groups.get(Losses.#groupOf(loss)) ?? []
    const from = firstEnding(ranges, loss.seqFrom)
    let to = from
    const rest: Loss[] = []
    for (let next = ranges[to]; next !== undefined && next.seqFrom <= loss.seqTo; next = ranges[to]) {
      if (next.seqFrom < loss.seqFrom) rest.push({ ...next, seqTo: loss.seqFrom - 1 })
      if (next.seqTo > loss.seqTo) rest.push({ ...next, seqFrom: loss.seqTo + 1 })
      to += 1
    }
    ranges.splice(from, to - from, ...rest)
    if (ranges.length === 0) this.#groups.delete(Losses.#groupOf(loss))
  }

  /** The parts of a range that are not in here for any reason. */
  missing(range: Loss): Loss[] {
    const without = new Losses([range])
    for (const reason of ['evicted', 'unreadable'] as const) {
      for (const known of this.#groups.get(Losses.#groupOf({ ...range, reason })) ?? []) without.remove({ ...known, reason: range.reason })
    }
    return without.all
  }

  pack(): PackedLosses[] {
    return [...this.#groups.values()].flatMap((ranges) => {
      const [first] = ranges
      if (!first) return []
      let at = 0
      const runs = ranges.flatMap(({ seqFrom, seqTo }) => {
        const run = [seqFrom - at, seqTo - seqFrom + 1]
        at = seqTo + 1
        return run
      })
      const lostAt = ranges.reduce((latest, range) => Math.max(latest, range.lostAt), 0)
      return [{ cameraId: first.cameraId, epoch: first.epoch, reason: first.reason, lostAt, runs }]
    })
  }
}

export function unpackLosses({ runs, ...of }: PackedLosses): Loss[] {
  const losses: Loss[] = []
  let at = 0
  for (let n = 0; n + 1 < runs.length; n += 2) {
    const seqFrom = at + (runs[n] ?? 0)
    at = seqFrom + (runs[n + 1] ?? 0)
    losses.push({ ...of, seqFrom, seqTo: at - 1 })
  }
  return losses
}

/** Where in the ordered ranges the first one stands that ends at or behind `seq`. */
function firstEnding(ranges: readonly Loss[], seq: number): number {
  let [low, high] = [0, ranges.length]
  while (low < high) {
    const middle = (low + high) >> 1
    if ((ranges[middle]?.seqTo ?? 0) < seq) low = middle + 1
    else high = middle
  }
  return low
}
