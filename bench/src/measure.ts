/** CPU time of running programs, and the middle of a series. */
import { readdirSync } from 'node:fs'
import { statFields } from '@frameloop/kit/process-identity'

/** User and system time in ms of a program, its children and those it has waited for (proc(5), fields 4 and 14 to 17, in ticks of 10 ms). */
export function cpuMs(pid: number): number {
  let ticks = 0
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    const fields = statFields(Number(entry)).map(Number)
    if (Number(entry) === pid || fields[1] === pid) for (const time of fields.slice(11, 15)) ticks += time
  }
  return ticks * 10
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2
}
