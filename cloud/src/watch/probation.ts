/**
 * A new champion on probation: the one before it answers the same frames in its shadow, and takes its place again where it is
 * right more often, where the new one leaves frames unanswered, or where it is many times slower.
 */
import type { Ms } from '@frameloop/kit/units'
import { figuresOf, percent } from '../train/evaluate.ts'

/** A zone of a frame as both were asked about it. */
export interface BothAnswered {
  readonly zone: string
  /** Null where nobody has labelled it. */
  readonly truth: string | null
  readonly before: string
  readonly beforeMs: Ms
  /** Null where the new one gave no answer. */
  readonly now: string | null
  readonly nowMs: Ms | null
}

export interface ProbationRule {
  /** Fewer prove nothing. */
  readonly leastAnswers: number
  /** Of balanced accuracy, on the same labelled frames. */
  readonly worse: number
  /** By how many standard deviations the frames that only one of both got right must differ (McNemar, Psychometrika 1947). */
  readonly deviations: number
  /** Share of frames without an answer. */
  readonly unanswered: number
  /** Times the median of the one before, and by how much at least. */
  readonly slower: number
  readonly slowerBy: Ms
}

export const probationRule: ProbationRule = { leastAnswers: 60, worse: 0.05, deviations: 3, unanswered: 0.2, slower: 4, slowerBy: 10 }

export type ProbationVerdict = { readonly kind: 'fine' | 'too few' | 'back'; readonly why: string }

const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0

/** `settled`: those asked when both had surely been loaded; before, a missing answer says nothing. */
export function judgeProbation(asked: readonly BothAnswered[], settled: readonly BothAnswered[], rule: ProbationRule = probationRule): ProbationVerdict {
  const missing = settled.filter(({ now }) => now === null).length
  if (settled.length >= rule.leastAnswers && missing / settled.length >= rule.unanswered)
    return { kind: 'back', why: `it has left ${missing} of ${settled.length} questions unanswered` }
  const both = asked.filter((one): one is BothAnswered & { now: string; nowMs: Ms } => one.now !== null)
  const [nowMs, beforeMs] = [median(both.map((one) => one.nowMs)), median(both.map((one) => one.beforeMs))]
  if (both.length >= rule.leastAnswers && nowMs >= rule.slower * beforeMs && nowMs - beforeMs >= rule.slowerBy)
    return { kind: 'back', why: `it takes ${nowMs.toFixed(1)} ms, the one before ${beforeMs.toFixed(1)} ms` }
  const labelled = both.filter((one): one is typeof one & { truth: string } => one.truth !== null)
  if (labelled.length < rule.leastAnswers) return { kind: 'too few', why: `${labelled.length} labelled frames that both have answered; ${rule.leastAnswers} are needed` }
  const [now, before] = [
    labelled.map(({ zone, truth, now: answer }) => ({ zone, truth, answer })),
    labelled.map(({ zone, truth, before: answer }) => ({ zone, truth, answer })),
  ].map((judged) => figuresOf(judged).balancedAccuracy) as [number, number]
  const onlyBefore = labelled.filter((one) => one.before === one.truth && one.now !== one.truth).length
  const onlyNow = labelled.filter((one) => one.now === one.truth && one.before !== one.truth).length
  const why = `${percent(now)} balanced accuracy against ${percent(before)} of the one before on the same ${labelled.length} labelled answers`
  const isWorse = before - now >= rule.worse && onlyBefore - onlyNow >= rule.deviations * Math.sqrt(onlyBefore + onlyNow)
  return { kind: isWorse ? 'back' : 'fine', why }
}
