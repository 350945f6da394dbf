/** What inference says of itself beside the times of hops: what waits, who listens, who was left behind. */
import type { Log } from '@frameloop/kit/log'
import { Counter, Gauge, type Metrics } from '@frameloop/kit/metrics'
import type { Slot } from '../models/model-slots.ts'
import type { Engine } from './engine.ts'
import type { FeedNumbers, Feeds } from './feeds.ts'

export function serveMetrics(registry: Metrics, engine: Pick<Engine, 'waiting' | 'loaded'>, feeds: Pick<Feeds, 'size' | 'numbers'>): void {
  const registers = [registry]
  const gauge = (name: string, help: string, read: () => number): void =>
    void new Gauge({
      ...{ name, help, registers },
      collect() {
        this.set(read())
      },
    })
  gauge('frameloop_serve_waiting_questions', 'Questions that wait for a thread', () => engine.waiting.questions)
  gauge('frameloop_serve_waiting_bytes', 'Their bytes', () => engine.waiting.bytes)
  gauge('frameloop_models_loaded', 'Models that the threads hold', () => engine.loaded)
  gauge('frameloop_feed_readers', 'WebSockets that listen to live answers', () => feeds.size)
  const counter = (name: string, help: string, which: keyof FeedNumbers): void => {
    let told = 0
    void new Counter({
      ...{ name, help, registers },
      collect() {
        this.inc(feeds.numbers[which] - told)
        told = feeds.numbers[which]
      },
    })
  }
  counter('frameloop_feed_sent_total', 'Messages sent to readers of feeds', 'sent')
  counter('frameloop_feed_skipped_total', 'Answers that readers of feeds were too slow for', 'skipped')
  counter('frameloop_feed_stalled_total', 'Readers closed because they took nothing', 'stalled')
}

/** Counts what models have no answer to; the first of each is in the log. */
export function failureObserver(registry: Metrics, log: Log): (slot: Slot, thrown: unknown) => void {
  const counter = new Counter({
    ...{ name: 'frameloop_answers_failed_total', help: 'Zones of live frames that a model had no answer to, while others had', labelNames: ['task', 'version'] },
    registers: [registry],
  })
  const known = new Set<string>()
  return ({ change: { task, version } }, thrown) => {
    counter.inc({ task, version })
    if (known.has(`${task} ${version}`)) return
    known.add(`${task} ${version}`)
    log.error({ err: thrown, task, version }, 'a model has no answer')
  }
}
