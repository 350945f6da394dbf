/** May this version replace that one? A decision, without side effects. */
import { type Evaluation, percent } from '../train/evaluate.ts'

export interface Verdict {
  readonly promote: boolean
  readonly reason: string
}

/**
 * On the same held-out frames: better or equal (the newer data decides a tie) replaces; `force` replaces on record.
 * `liveDifference`: how what is served differs from what was trained on; empty when it does not.
 */
export function mayReplace(challenger: Evaluation, champion: Evaluation | undefined, force: boolean, liveDifference: string): Verdict {
  if (force) return { promote: true, reason: 'forced by whoever asked for the run' }
  if (liveDifference) return { promote: false, reason: liveDifference }
  if (challenger.n === 0)
    return champion
      ? { promote: false, reason: 'no zone could be judged: too few passages' }
      : { promote: true, reason: 'the first model; no zone could be judged: too few passages' }
  const score = percent(challenger.balancedAccuracy)
  if (!champion) return { promote: true, reason: `the first model, ${score} balanced accuracy on ${challenger.n} held-out examples` }
  const before = percent(champion.balancedAccuracy)
  if (challenger.balancedAccuracy >= champion.balancedAccuracy)
    return { promote: true, reason: `${score} balanced accuracy against ${before} of the champion on the same ${challenger.n} held-out examples` }
  return { promote: false, reason: `${score} balanced accuracy does not reach the champion's ${before} on the same ${challenger.n} held-out examples` }
}
