/** CPU time of running programs, the middle of a series, the distance of two pictures. */
import { readdirSync, readFileSync } from 'node:fs'
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

/** Most memory that was ever resident, MB (proc(5), VmHWM). */
export function peakMB(pid: number): number {
  return Math.round(Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024)
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  return sorted.length % 2 === 1 ? (sorted[middle] ?? 0) : ((sorted[middle - 1] ?? 0) + (sorted[middle] ?? 0)) / 2
}

/** Peak signal-to-noise ratio of two pictures of equal size, dB; 0 where their sizes differ. */
export function decibels(one: Uint8Array, other: Uint8Array): number {
  if (one.length !== other.length) return 0
  let sum = 0
  for (let at = 0; at < one.length; at += 1) sum += ((one[at] ?? 0) - (other[at] ?? 0)) ** 2
  return 10 * Math.log10((255 ** 2 * one.length) / sum)
}
