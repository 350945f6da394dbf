/**
 * Who serves: per task and alias the loaded model. A change is loaded and checked beside the old one, then takes its
 * place between two batches; nothing waits and nothing fails. What cannot be loaded or checked leaves the old one serving.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Log } from '@frameloop/kit/log'
import { retry } from '@frameloop/kit/retry'
import type { ModelChanged } from '@frameloop/schemas/events'
import { type Mlflow, modelFileNames } from './mlflow.ts'
import { type ModelFiles, type Predictor, readModel } from './model-files.ts'

export interface Slot {
  readonly change: ModelChanged
  readonly predictor: Predictor
}

export class ModelSlots {
  readonly #slots = new Map<string, Slot>()
  readonly #mlflow: Mlflow
  readonly #cache: string
  readonly #log: Log

  constructor(mlflow: Mlflow, cacheFolder: string, log: Log) {
    this.#mlflow = mlflow
    this.#cache = cacheFolder
    this.#log = log
  }

  get all(): readonly Slot[] {
    return [...this.#slots.values()]
  }

  of(task: string): Slot | undefined {
    return this.#slots.get(`${task}:champion`)
  }

  /** Makes the version that the event names the one that answers. */
  async apply(change: ModelChanged, signal: AbortSignal): Promise<void> {
    const key = `${change.task}:${change.alias}`
    const before = this.#slots.get(key)
    if (before?.change.version === change.version && before.change.digest === change.digest) return
    try {
      const files = await this.#files(change, signal)
      const predictor = await readModel(files, change.digest)
      // the first answer of a network is the slow one; it is not a caller's
      predictor.predict([{ referenceKey: predictor.meta.references[0] ?? '', pixels: new Uint8Array(predictor.meta.width * predictor.meta.height * predictor.meta.channels) }])
      this.#slots.set(key, { change, predictor })
      this.#log.info({ task: change.task, alias: change.alias, version: change.version, was: before?.change.version }, 'model serves')
      before?.predictor.dispose()
    } catch (thrown) {
      if (!signal.aborted) this.#log.error({ err: thrown, task: change.task, version: change.version }, 'model refused, the one before goes on serving')
    }
  }

  async #files(change: ModelChanged, signal: AbortSignal): Promise<ModelFiles> {
    const folder = join(this.#cache, change.digest)
    if (modelFileNames.every((name) => existsSync(join(folder, name)))) return new Map(modelFileNames.map((name) => [name, readFileSync(join(folder, name))]))
    const files = await retry(
      () => this.#mlflow.getFiles(change.artifactPath, 'model', modelFileNames),
      { backoff: { first: 300, cap: 5_000 }, attempts: 12, isTransient: () => true },
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

  close(): void {
    for (const { predictor } of this.#slots.values()) predictor.dispose()
    this.#slots.clear()
  }
}
