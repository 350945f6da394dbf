/** How long a live frame takes from the camera to its answer, hop by hop: the agent's capture time is where it begins. */
import { Histogram, type Metrics } from '@frameloop/kit/metrics'
import type { PredictionMade } from '@frameloop/schemas/events'

type Timed = Pick<PredictionMade, 'capturedAt' | 'arrivedAt' | 'validatedAt' | 'extractedAt' | 'preparedAt' | 'answeredAt'>

/** Seconds by hop; `all` is from capture to answer. */
export function hopTimes({ capturedAt, arrivedAt, validatedAt, extractedAt, preparedAt, answeredAt }: Timed): Readonly<Record<string, number>> {
  const seconds = (from: number, to: number): number => Math.max(0, to - from) / 1000
  return {
    upload: seconds(capturedAt, arrivedAt),
    validate: seconds(arrivedAt, validatedAt),
    extract: seconds(validatedAt, extractedAt),
    features: seconds(extractedAt, preparedAt),
    answer: seconds(preparedAt, answeredAt),
    all: seconds(capturedAt, answeredAt),
  }
}

/** Notes the times of live answers; a backlog is as old as its outage was long. */
export function hopObserver(registry: Metrics): (made: PredictionMade) => void {
  const histogram = new Histogram({
    name: 'frameloop_glass_to_answer_seconds',
    help: 'From capture to answer of live frames, by hop; hop="all" is the whole way',
    labelNames: ['hop'],
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10],
    registers: [registry],
  })
  return (made) => {
    if (made.lane !== 'live') return
    for (const [hop, time] of Object.entries(hopTimes(made))) histogram.observe({ hop }, time)
  }
}
