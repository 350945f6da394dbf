/** Should we learn again? A decision on figures, without side effects. */
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { percent } from '../train/evaluate.ts'

export interface LiveFigures {
  readonly n: number
  readonly accuracy: number
  readonly balancedAccuracy: number
  /** Classes that occur among the labelled answers. */
  readonly classes: number
}

export interface RetrainRule {
  /** Fewer labelled answers prove nothing. */
  readonly leastAnswers: number
  readonly leastBalancedAccuracy: number
  /** Between two requests of the same task. */
  readonly coolDown: Ms
}

export const retrainRule: RetrainRule = { leastAnswers: 60, leastBalancedAccuracy: 0.85, coolDown: 120_000 }

export type RetrainVerdict = { readonly kind: 'fine' | 'too few' | 'cooling down' | 'running'; readonly why: string } | { readonly kind: 'retrain'; readonly why: string }

export function judgeQuality(
  figures: LiveFigures,
  state: { readonly running: boolean; readonly lastRequest: EpochMs | undefined },
  now: EpochMs,
  rule: RetrainRule = retrainRule,
): RetrainVerdict {
  const score = `${percent(figures.balancedAccuracy)} balanced accuracy over the last ${figures.n} labelled answers`
  if (figures.n < rule.leastAnswers || figures.classes < 2)
    return { kind: 'too few', why: `${figures.n} labelled answers of ${figures.classes} classes; ${rule.leastAnswers} of at least 2 are needed` }
  if (figures.balancedAccuracy >= rule.leastBalancedAccuracy) return { kind: 'fine', why: score }
  if (state.running) return { kind: 'running', why: `${score}; a run is under way` }
  if (state.lastRequest !== undefined && now - state.lastRequest < rule.coolDown)
    return { kind: 'cooling down', why: `${score}; asked ${Math.round((now - state.lastRequest) / 1000)} s ago` }
  return { kind: 'retrain', why: `${score}, below ${(rule.leastBalancedAccuracy * 100).toFixed(0)} %` }
}
