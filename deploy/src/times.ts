/** Times that a person typed. */
import { Fault } from '@frameloop/kit/fault'

/** A day, which is one of UTC, or a moment with its zone; without one it would mean another one on every machine. */
const pattern = /^\d{4}-\d\d-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d))?$/

/** Absent: null. Throws `REQUEST_INVALID` naming the option. */
export function timeOf(text: string | undefined, option: string): Date | null {
  if (text === undefined) return null
  const at = new Date(text)
  if (!pattern.test(text) || Number.isNaN(at.getTime())) throw new Fault('REQUEST_INVALID', `${option} ${text} is no time; times look like 2026-11-24T10:00:00Z`)
  return at
}
