/** CPU time of running programs, and the middle of a series. */
import { readdirSync, readFileSync } from 'node:fs'

/** User and system time in ms of a program, its children and those it has waited for (proc(5), fields 4 and 14 to 17, in ticks of 10 ms). */
export function cpuMs(pid: number): number {
  let ticks = 0
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, 'utf8')
      const fields = stat
        .slice(stat.lastIndexOf(')') + 2)
        .split(' ')
        .map(Number)
      if (Number(entry) === pid || fields[1] === pid) for (const time of fields.slice(11, 15)) ticks += time
    } catch {
      // it ended while we looked
    }
  }
  return ticks * 10
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2
}
