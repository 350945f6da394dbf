/** Bounds what is in hand at once by its bytes: whoever comes when they are used up waits, in the order of coming. */
import type { Bytes } from '@frameloop/kit/units'

export class ByteBudget {
  readonly #most: Bytes
  #taken: Bytes = 0
  readonly #waiting: { readonly bytes: Bytes; readonly go: () => void }[] = []

  constructor(most: Bytes) {
    this.#most = most
  }

  /** Bytes that are taken. */
  get taken(): Bytes {
    return this.#taken
  }

  /** Undefined where there is room at once. What is larger than all of it waits until nothing else is taken. */
  take(bytes: Bytes): Promise<void> | undefined {
    if (this.#waiting.length === 0 && this.#fits(bytes)) {
      this.#taken += bytes
      return undefined
    }
    return new Promise((go) => this.#waiting.push({ bytes, go }))
  }

  give(bytes: Bytes): void {
    this.#taken -= bytes
    for (let first = this.#waiting[0]; first && this.#fits(first.bytes); first = this.#waiting[0]) {
      this.#waiting.shift()
      this.#taken += first.bytes
      first.go()
    }
  }

  #fits(bytes: Bytes): boolean {
    return this.#taken === 0 || this.#taken + bytes <= this.#most
  }
}
