import type { EpochMs } from '@frameloop/kit/units'

/**
 * How much something grows in ten minutes, as a share of its mean: the slope of Theil and Sen (the median of the slopes
 * between all pairs), which a single high sample does not move.
 */
export function growthPerTenMinutes(samples: readonly { readonly at: EpochMs; readonly value: number }[]): number {
  const slopes = samples.flatMap((one, index) => samples.slice(index + 1).map((other) => (other.value - one.value) / (other.at - one.at))).sort((a, b) => a - b)
  const mean = samples.reduce((sum, { value }) => sum + value, 0) / samples.length
  return ((slopes[Math.floor(slopes.length / 2)] ?? 0) * 600_000) / mean
}
