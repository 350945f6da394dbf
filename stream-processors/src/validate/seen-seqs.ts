/** Which numbers have been seen, as ranges: small while they come in order, exact whatever the order. */
export type Ranges = readonly (readonly [from: number, to: number])[]

/** Whether `seq` is new, and the ranges with it. Ranges are sorted, closed and do not touch. */
export function addSeq(seen: Ranges, seq: number): { readonly isNew: boolean; readonly seen: Ranges } {
  // nearly always the next one of the last range
  const last = seen.at(-1)
  if (last && seq === last[1] + 1) return { isNew: true, seen: [...seen.slice(0, -1), [last[0], seq]] }
  if (hasSeq(seen, seq)) return { isNew: false, seen }
  const merged: [number, number][] = []
  for (const [from, to] of [...seen, [seq, seq] as const].sort((a, b) => a[0] - b[0])) {
    const before = merged.at(-1)
    if (before && from <= before[1] + 1) before[1] = Math.max(before[1], to)
    else merged.push([from, to])
  }
  return { isNew: true, seen: merged }
}

export const hasSeq = (ranges: Ranges, seq: number): boolean => ranges.some(([from, to]) => from <= seq && seq <= to)

/** The ranges without `seq`. */
export function removeSeq(ranges: Ranges, seq: number): Ranges {
  return ranges.flatMap(([from, to]): Ranges => {
    if (seq < from || seq > to) return [[from, to]]
    return [...(from < seq ? [[from, seq - 1] as const] : []), ...(seq < to ? [[seq + 1, to] as const] : [])]
  })
}
