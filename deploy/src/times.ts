/** Times that a person typed. */
import { Fault } from '@frameloop/kit/fault'

/** Absent: null. Throws `REQUEST_INVALID` naming the option. */
export function timeOf(text: string | undefined, option: string): Date | null {
  if (text === undefined) return null
  const at = new Date(text)
  if (Number.isNaN(at.getTime())) throw new Fault('REQUEST_INVALID', `${option} ${text} is no time; times look like 2026-11-24T10:00:00Z`)
  return at
}
