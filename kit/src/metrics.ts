/** One prom-client registry per process, and the four figures that every stage reports. */
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

export type Metrics = Registry
export { Counter, Gauge, Histogram }

export function openMetrics(name: string): Metrics {
  const registry = new Registry()
  registry.setDefaultLabels({ process: name })
  collectDefaultMetrics({ register: registry })
  return registry
}

export interface StageMetrics {
  readonly received: Counter<'stage'>
  readonly emitted: Counter<'stage' | 'topic'>
  readonly rejected: Counter<'stage' | 'reason'>
  readonly marked: Counter<'stage' | 'mark'>
  readonly seconds: Histogram<'stage'>
  readonly blockedSeconds: Counter<'stage'>
  /** Records between what the stage has committed and the end of its topics. */
  readonly lag: Gauge<'stage' | 'topic'>
}

const made = new WeakMap<Registry, StageMetrics>()

/** received, emitted, rejected (by reason), seconds: the same four for every stage, plus lag and time spent waiting for the world. */
export function stageMetrics(registry: Metrics): StageMetrics {
  const known = made.get(registry)
  if (known) return known
  const registers = [registry]
  const metrics: StageMetrics = {
    received: new Counter({ name: 'frameloop_stage_received_total', help: 'Records taken in', labelNames: ['stage'], registers }),
    emitted: new Counter({ name: 'frameloop_stage_emitted_total', help: 'Records given out', labelNames: ['stage', 'topic'], registers }),
    rejected: new Counter({ name: 'frameloop_stage_rejected_total', help: 'Records sent to the dead letters', labelNames: ['stage', 'reason'], registers }),
    marked: new Counter({ name: 'frameloop_stage_marked_total', help: 'Media that go on with something odd about them', labelNames: ['stage', 'mark'], registers }),
    seconds: new Histogram({
      name: 'frameloop_stage_seconds',
      help: 'Seconds of work on one record',
      labelNames: ['stage'],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    }),
    blockedSeconds: new Counter({ name: 'frameloop_stage_blocked_seconds_total', help: 'Seconds spent waiting for a store, broker or registry', labelNames: ['stage'], registers }),
    lag: new Gauge({ name: 'frameloop_stage_lag_records', help: 'Records not yet worked on', labelNames: ['stage', 'topic'], registers }),
  }
  made.set(registry, metrics)
  return metrics
}
