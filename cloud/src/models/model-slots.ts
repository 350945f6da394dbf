/**
 * Who serves: per task and alias the loaded model. A change is loaded and checked beside the old one, then takes its
 * place between two questions; nothing waits and nothing fails. What cannot be loaded or checked leaves the old one serving;
 * what cannot be fetched now is fetched when MLflow is back. Changes may be made at the same time: the latest of a task and
 * alias is the one that counts, however long those before it take.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import { retry } from '@frameloop/kit/retry'
import { Turns } from '@frameloop/kit/turns'
import type { Ms } from '@frameloop/kit/units'
import type { ModelChanged } from '@frameloop/schemas/events'
import type { Loaded } from '../serve/engine-thread.ts'
import { isMlflowAway, type Mlflow } from './mlflow.ts'
import { type ModelFiles, modelFileNames } from './model-files.ts'
import { aliases } from './roles.ts'

export interface Slot {
  readonly change: ModelChanged
  readonly model: Loaded
}

/** What loads models and lets them go when nobody waits for their answers any more. */
export interface Loader {
  load(digest: string, files: ModelFiles): Promise<Loaded>
  unload(digest: string): Promise<void>
}

/** Where a frame lies between 0 and 1: its id is a digest, so any share of them is a fair one, and each replica decides alike. */
export function placeOf(frameId: string): number {
  return Number.parseInt(frameId.slice(0, 8), 16) / 2 ** 32
}

const keyOf = ({ task, alias }: ModelChanged): string => `${task}:${alias}`

/** A thread that dies each time it loads a model dies of the model. */
const mostTries = 3
const isThreadDead = (thrown: unknown): boolean => thrown instanceof Fault && thrown.code === 'THREAD_DIED'

export class ModelSlots {
  readonly #slots = new Map<string, Slot>()
  /** The latest change of each task and alias. */
  readonly #wanted = new Map<string, ModelChanged>()
  /** Those whose files could not be fetched yet, or whose thread died. */
  readonly #waiting = new Set<ModelChanged>()
  /** How often each could not be made. */
  readonly #tries = new WeakMap<ModelChanged, number>()
  /** By digest: what is being let go must not be loaded meanwhile. */
  readonly #turns = new Turns<string>()
  readonly #mlflow: Mlflow
  readonly #cache: string
  readonly #loader: Loader
  readonly #log: Log

  constructor(mlflow: Mlflow, cacheFolder: string, loader: Loader, log: Log) {
    this.#mlflow = mlflow
    this.#cache = cacheFolder
    this.#loader = loader
    this.#log = log
  }

  get all(): readonly Slot[] {
    return [...this.#slots.values()]
  }

  of(task: string): Slot | undefined {
    return this.#slots.get(`${task}:champion`)
  }

  /**
   * Who answers about a frame of the live path, among those that `fits` says can: whoever's answer counts first, which is the
   * challenger for its share of the frames and the champion for the others; then the shadow.
   */
  answering(task: string, frameId: string, fits: (slot: Slot) => boolean): Slot[] {
    const [champion, challenger, shadow] = aliases.map((alias) => this.#slots.get(`${task}:${alias}`)).map((slot) => (slot && fits(slot) ? slot : undefined))
    const counts = challenger && placeOf(frameId) < challenger.change.share ? challenger : champion
    return [counts, shadow].filter((slot, at, all): slot is Slot => slot !== undefined && all.findIndex((other) => other?.change.version === slot.change.version) === at)
  }

  /** The changes that are to be made, of each task and alias the latest: what the topic says up to its end. */
  static latest(changes: Iterable<ModelChanged>): ModelChanged[] {
    return [...new Map([...changes].map((change) => [keyOf(change), change])).values()]
  }

  /** Changes that are to be made when MLflow is back. */
  get waiting(): readonly ModelChanged[] {
    return [...this.#waiting]
  }

  /** Makes the version that the event names the one that answers. */
  async apply(change: ModelChanged, signal: AbortSignal): Promise<void> {
    const key = keyOf(change)
    const before = this.#slots.get(key)
    for (const other of this.#waiting) if (keyOf(other) === key) this.#waiting.delete(other)
    this.#wanted.set(key, change)
    if (before?.change.version === change.version && before.change.digest === change.digest) {
      this.#slots.set(key, { ...before, change })
      return
    }
    if (change.version === '') {
      this.#slots.delete(key)
      this.#log.info({ task: change.task, alias: change.alias, was: before?.change.version }, 'nobody serves under the alias any more')
      if (before) await this.#letGo(before)
      return
    }
    await this.#make(change, signal)
  }

  /** Makes changes that had to wait, until the signal. */
  async run(signal: AbortSignal, pause: Ms = 5_000): Promise<void> {
    while (!signal.aborted) {
      await sleep(pause, undefined, { signal }).catch(() => {})
      for (const change of this.#waiting) if (!signal.aborted) await this.#make(change, signal)
    }
  }

  async #make(change: ModelChanged, signal: AbortSignal): Promise<void> {
    const { task, alias, version, digest } = change
    const key = keyOf(change)
    try {
      const model = await this.#load(change, signal)
      this.#waiting.delete(change)
      if (this.#wanted.get(key) !== change) return await this.#letGo({ change, model })
      const before = this.#slots.get(key)
      this.#slots.set(key, { change, model })
      const { engine, why } = model
      this.#log.info({ task, alias, version, was: before?.change.version, engine, ...(why ? { why } : {}) }, 'model serves')
      if (before) await this.#letGo(before)
    } catch (thrown) {
      if (signal.aborted) return
      const tries = (this.#tries.get(change) ?? 0) + 1
      this.#tries.set(change, tries)
      const mayLater = isMlflowAway(thrown) || (isThreadDead(thrown) && tries < mostTries)
      if (!mayLater) {
        this.#waiting.delete(change)
        this.#log.error({ err: thrown, task, version, digest }, 'model refused, the one before goes on serving')
      } else if (this.#wanted.get(key) === change && !this.#waiting.has(change)) {
        this.#waiting.add(change)
        this.#log.warn({ err: thrown, task, version }, 'model waits, the one before goes on serving')
      }
    }
  }

  async #load(change: ModelChanged, signal: AbortSignal): Promise<Loaded> {
    const folder = join(this.#cache, change.digest)
    if (modelFileNames.every((name) => existsSync(join(folder, name)))) {
      try {
        const kept = new Map(modelFileNames.map((name) => [name, readFileSync(join(folder, name))]))
        return await this.#turns.take(change.digest, () => this.#loader.load(change.digest, kept))
      } catch (thrown) {
        if (isThreadDead(thrown)) throw thrown
        // a power loss may have cut them off; MLflow has them whole
        this.#log.warn({ err: thrown, folder }, 'kept files of a model are not used')
        rmSync(folder, { recursive: true, force: true })
      }
    }
    const fetched = await this.#fetch(change, folder, signal)
    return this.#turns.take(change.digest, () => this.#loader.load(change.digest, fetched))
  }

  /** Unless somebody serves or is to serve by the same files, in another role or as another version. */
  #letGo({ change: { digest } }: Slot): Promise<void> {
    return this.#turns.take(digest, async () => {
      const isElsewhere = [...this.#wanted.values(), ...this.all.map(({ change }) => change)].some((other) => other.digest === digest)
      if (!isElsewhere) await this.#loader.unload(digest)
    })
  }

  async #fetch(change: ModelChanged, folder: string, signal: AbortSignal): Promise<ModelFiles> {
    const files = await retry(
      () => this.#mlflow.getFiles(change.artifactPath, 'model', modelFileNames),
      { backoff: { first: 300, cap: 5_000 }, attempts: 4, isTransient: isMlflowAway },
      signal,
    )
    const part = `${folder}.part-${process.pid}`
    mkdirSync(part, { recursive: true })
    for (const [name, bytes] of files) writeFileSync(join(part, name), bytes)
    try {
      renameSync(part, folder)
    } catch {
      // another replica was quicker with the same files
    }
    return files
  }
}
