/** Calls that come together are answered together: all that waits when the thread is free goes through the network in one piece. */
import type { Predictor } from '../models/model-files.ts'

export interface Question {
  readonly referenceKey: string
  readonly pixels: Uint8Array
}

export interface Reply {
  readonly scores: readonly number[]
  /** Of the whole batch. */
  readonly predictMs: number
}

interface Waiting {
  readonly question: Question
  readonly resolve: (reply: Reply) => void
  readonly reject: (error: unknown) => void
}

const largestBatch = 64

export class Batcher {
  readonly #queues = new Map<Predictor, Waiting[]>()

  ask(predictor: Predictor, question: Question): Promise<Reply> {
    return new Promise((resolve, reject) => {
      const queue = this.#queues.get(predictor)
      if (queue) queue.push({ question, resolve, reject })
      else {
        this.#queues.set(predictor, [{ question, resolve, reject }])
        setImmediate(() => this.#run(predictor))
      }
    })
  }

  #run(predictor: Predictor): void {
    const queue = this.#queues.get(predictor) ?? []
    this.#queues.delete(predictor)
    for (let from = 0; from < queue.length; from += largestBatch) {
      const batch = queue.slice(from, from + largestBatch)
      const since = performance.now()
      try {
        const scores = predictor.predict(batch.map(({ question }) => question))
        const predictMs = performance.now() - since
        for (const [at, { resolve }] of batch.entries()) resolve({ scores: scores[at] ?? [], predictMs })
      } catch (thrown) {
        for (const { reject } of batch) reject(thrown)
      }
    }
  }
}
