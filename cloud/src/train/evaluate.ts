/** Answers against the truth: accuracy, balanced accuracy, precision, recall, confusion; per zone and together. Pure. */

/** As people read it. */
export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`

export interface Judged {
  readonly zone: string
  readonly truth: string
  readonly answer: string
}

export interface Figures {
  readonly n: number
  readonly accuracy: number
  /** Mean recall over the classes that occur (Brodersen et al., ICPR 2010). */
  readonly balancedAccuracy: number
  /** What always answering the most frequent class would reach. */
  readonly majorityAccuracy: number
  readonly precision: Readonly<Record<string, number>>
  readonly recall: Readonly<Record<string, number>>
  /** confusion[truth][answer] = count */
  readonly confusion: Readonly<Record<string, Readonly<Record<string, number>>>>
}

export function figuresOf(judged: readonly Judged[]): Figures {
  const confusion: Record<string, Record<string, number>> = {}
  const truths = new Map<string, number>()
  const answers = new Map<string, number>()
  const right = new Map<string, number>()
  for (const { truth, answer } of judged) {
    const row = confusion[truth] ?? {}
    confusion[truth] = row
    row[answer] = (row[answer] ?? 0) + 1
    truths.set(truth, (truths.get(truth) ?? 0) + 1)
    answers.set(answer, (answers.get(answer) ?? 0) + 1)
    if (truth === answer) right.set(truth, (right.get(truth) ?? 0) + 1)
  }
  const n = judged.length
  const recall = Object.fromEntries([...truths].map(([name, count]) => [name, (right.get(name) ?? 0) / count]))
  const precision = Object.fromEntries([...answers].map(([name, count]) => [name, (right.get(name) ?? 0) / count]))
  const recalls = Object.values(recall)
  const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0)
  return {
    n,
    accuracy: n === 0 ? 0 : sum([...right.values()]) / n,
    balancedAccuracy: recalls.length === 0 ? 0 : sum(recalls) / recalls.length,
    majorityAccuracy: n === 0 ? 0 : Math.max(0, ...truths.values()) / n,
    precision,
    recall,
    confusion,
  }
}

export interface Evaluation {
  readonly perZone: Readonly<Record<string, Figures>>
  /** Mean over zones, so that a busy zone does not hide a quiet one. */
  readonly balancedAccuracy: number
  readonly accuracy: number
  readonly n: number
}

export function evaluate(judged: readonly Judged[]): Evaluation {
  const zones = [...new Set(judged.map(({ zone }) => zone))].sort()
  const perZone = Object.fromEntries(zones.map((zone) => [zone, figuresOf(judged.filter((one) => one.zone === zone))]))
  const figures = Object.values(perZone)
  const mean = (pick: (one: Figures) => number): number => (figures.length === 0 ? 0 : figures.reduce((total, one) => total + pick(one), 0) / figures.length)
  return { perZone, balancedAccuracy: mean((one) => one.balancedAccuracy), accuracy: figuresOf(judged).accuracy, n: judged.length }
}
