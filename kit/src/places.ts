/** So many at once and no more: whoever comes when all places are taken waits, in order. */
export class Places {
  #free: number
  readonly #waiting: (() => void)[] = []

  constructor(count: number) {
    this.#free = count
  }

  async run<Result>(act: () => Promise<Result>): Promise<Result> {
    if (this.#free > 0) this.#free -= 1
    else await new Promise<void>((resolve) => this.#waiting.push(resolve))
    try {
      return await act()
    } finally {
      // handed on, so that nobody who comes meanwhile takes it
      const next = this.#waiting.shift()
      if (next) next()
      else this.#free += 1
    }
  }
}
