/** May this version replace that one? A decision, without side effects. */
import { type Evaluation, percent } from '../train/evaluate.ts'

export interface Verdict {
  readonly promote: boolean
  readonly reason: string
}

/** `now`: who is champion at the end; `judged`: with whom the new version was compared. What somebody has decided meanwhile stands. */
export function unlessDecided(verdict: Verdict, judged: string | undefined, now: string | undefined, force: boolean): Verdict {
  if (!verdict.promote || force || judged === now) return verdict
  return { promote: false, reason: `version ${now} became champion while this one was trained, which was compared with ${judged ? `version ${judged}` : 'nobody'}` }
}

/**
 * On the same held-out frames: better or equal (the newer data decides a tie) replaces; `force` replaces on record. A champion
 * that cannot be judged on them, because it was trained on another preprocessing, is replaced by what was judged itself, and so
 * is one whose files are gone.
 * `liveDifference`: how what is served differs from what was trained on; empty when it does not. `unlearned`: places, as
 * `camera zone`, that the champion has learned about and the challenger has not.
 */
export function mayReplace(
  challenger: Evaluation,
  champion: Evaluation | 'not comparable' | 'gone' | undefined,
  force: boolean,
  liveDifference: string,
  unlearned: readonly string[] = [],
): Verdict {
  if (force) return { promote: true, reason: 'forced by whoever asked for the run' }
  if (liveDifference) return { promote: false, reason: liveDifference }
  if (unlearned.length > 0)
    return {
      promote: false,
      reason: `it has learned nothing about ${unlearned.slice(0, 3).join(', ')}${unlearned.length > 3 ? ` and ${unlearned.length - 3} more` : ''}, which the champion answers for`,
    }
  if (challenger.n === 0)
    return champion
      ? { promote: false, reason: 'no zone could be judged: too few passages' }
      : { promote: true, reason: 'the first model of its preprocessing; no zone could be judged: too few passages' }
  const score = percent(challenger.balancedAccuracy)
  if (champion === 'gone') return { promote: true, reason: `the champion's files are gone; ${score} balanced accuracy on ${challenger.n} held-out examples` }
  if (!champion || champion === 'not comparable')
    return { promote: true, reason: `the first model of its preprocessing, ${score} balanced accuracy on ${challenger.n} held-out examples` }
  const before = percent(champion.balancedAccuracy)
  if (challenger.balancedAccuracy >= champion.balancedAccuracy)
    return { promote: true, reason: `${score} balanced accuracy against ${before} of the champion on the same ${challenger.n} held-out examples` }
  return { promote: false, reason: `${score} balanced accuracy does not reach the champion's ${before} on the same ${challenger.n} held-out examples` }
}
