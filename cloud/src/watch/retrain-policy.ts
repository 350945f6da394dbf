/** Should we learn again? A decision on figures, without side effects. */
import type { EpochMs, Ms } from '@frameloop/kit/units'
import { figuresOf, type Judged, percent } from '../train/evaluate.ts'

export interface LiveFigures {
  readonly n: number
  readonly accuracy: number
  readonly balancedAccuracy: number
  /** Classes that occur often enough among the labelled answers. */
  readonly classes: number
}

export interface RetrainRule {
  /** Fewer labelled answers prove nothing. */
  readonly leastAnswers: number
  /** Of a class: one wrong answer of two would be half of its recall. */
  readonly leastOfClass: number
  readonly leastBalancedAccuracy: number
  /** Between two requests of the same task; twice as long after each run that changed nothing about it. */
  readonly coolDown: Ms
  readonly longestCoolDown: Ms
}

export const retrainRule: RetrainRule = { leastAnswers: 60, leastOfClass: 10, leastBalancedAccuracy: 0.85, coolDown: 120_000, longestCoolDown: 6 * 3_600_000 }

export type RetrainVerdict = { readonly kind: 'fine' | 'too few' | 'cooling down' | 'running'; readonly why: string } | { readonly kind: 'retrain'; readonly why: string }

/** Of the classes that somebody labelled often enough to say something. */
export function liveFigures(judged: readonly Judged[], rule: RetrainRule = retrainRule): LiveFigures {
  const counts = new Map<string, number>()
  for (const { truth } of judged) counts.set(truth, (counts.get(truth) ?? 0) + 1)
  const { n, accuracy, balancedAccuracy, recall } = figuresOf(judged.filter(({ truth }) => (counts.get(truth) ?? 0) >= rule.leastOfClass))
  return { n, accuracy, balancedAccuracy, classes: Object.keys(recall).length }
}

export function judgeQuality(
  figures: LiveFigures,
  state: { readonly running: boolean; readonly lastRequest: EpochMs | undefined /** Requests since it was fine, which did not make it so. */; readonly inVain?: number },
  now: EpochMs,
  rule: RetrainRule = retrainRule,
): RetrainVerdict {
  const score = `${percent(figures.balancedAccuracy)} balanced accuracy over the last ${figures.n} labelled answers`
  if (figures.n < rule.leastAnswers || figures.classes < 2)
    return { kind: 'too few', why: `${figures.n} labelled answers of ${figures.classes} classes; ${rule.leastAnswers} of at least 2 are needed` }
  if (figures.balancedAccuracy >= rule.leastBalancedAccuracy) return { kind: 'fine', why: score }
  if (state.running) return { kind: 'running', why: `${score}; a run is under way` }
  const coolDown = Math.min(rule.longestCoolDown, rule.coolDown * 2 ** Math.max(0, (state.inVain ?? 0) - 1))
  if (state.lastRequest !== undefined && now - state.lastRequest < coolDown)
    return { kind: 'cooling down', why: `${score}; asked ${Math.round((now - state.lastRequest) / 1000)} s ago, and again after ${Math.round(coolDown / 1000)} s` }
  return { kind: 'retrain', why: `${score}, below ${(rule.leastBalancedAccuracy * 100).toFixed(0)} %` }
}
