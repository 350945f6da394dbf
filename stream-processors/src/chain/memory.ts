/** A stage's memory: per key a small JSON value, kept in a compacted topic whose partitions match the stage's input. */

import { stateTopic } from '@frameloop/schemas/topics'
import type { Bus, Produced, TopicPartition } from './bus.ts'

export class Memory {
  readonly #byPartition = new Map<number, Map<string, unknown>>()
  /** What has changed since the last `changes`. */
  readonly #changed = new Map<number, Set<string>>()
  readonly #bus: Bus
  readonly #stage: string

  constructor(bus: Bus, stage: string) {
    this.#bus = bus
    this.#stage = stage
  }

  /** Reads the changelog of the partitions that came new, up to its end. */
  async load(assigned: readonly TopicPartition[], signal: AbortSignal): Promise<void> {
    const wanted = new Set(assigned.map(({ partition }) => partition))
    for (const partition of this.#byPartition.keys()) if (!wanted.has(partition)) this.#byPartition.delete(partition)
    const topic = stateTopic(this.#stage)
    const missing = [...wanted].filter((partition) => !this.#byPartition.has(partition))
    if (missing.length === 0) return
    const name = `frameloop.${this.#stage}.memory`
    const loaded = new Map(missing.map((partition) => [partition, new Map<string, unknown>()]))
    for await (const record of this.#bus.readTopic(name, topic, signal, missing)) {
      if (record.value.length === 0) loaded.get(record.partition)?.delete(record.key)
      else loaded.get(record.partition)?.set(record.key, JSON.parse(record.value.toString('utf8')))
    }
    // what a later assignment has read since is newer
    signal.throwIfAborted()
    for (const [partition, values] of loaded) this.#byPartition.set(partition, values)
  }

  /** Forgets what was not committed: the next `load` reads it again. */
  clear(): void {
    this.#byPartition.clear()
    this.#changed.clear()
  }

  get(partition: number, key: string): unknown {
    return this.#byPartition.get(partition)?.get(key)
  }

  /** Remembers now; `changes` make it durable with the transaction. */
  set(partition: number, key: string, value: unknown): void {
    const values = this.#byPartition.get(partition) ?? new Map<string, unknown>()
    this.#byPartition.set(partition, values)
    if (value === undefined) values.delete(key)
    else values.set(key, value)
    const changed = this.#changed.get(partition) ?? new Set<string>()
    this.#changed.set(partition, changed)
    changed.add(key)
  }

  /** One record for each key that has changed since it was asked last: of several changes only the latest matters. */
  changes(): Produced[] {
    const produced = [...this.#changed].flatMap(([partition, keys]) =>
      [...keys].map((key): Produced => {
        const value = this.get(partition, key)
        return { topic: stateTopic(this.#stage), partition, key, value: value === undefined ? null : Buffer.from(JSON.stringify(value)), headers: {} }
      }),
    )
    this.#changed.clear()
    return produced
  }
}
