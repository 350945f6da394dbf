/** What is done about one thing is done one after the other, in the order in which it was asked for; about others at the same time. */
export class Turns<Key> {
  readonly #last = new Map<Key, Promise<unknown>>()

  take<Result>(key: Key, act: () => Promise<Result>): Promise<Result> {
    const mine = (this.#last.get(key) ?? Promise.resolve()).then(act)
    const settled = mine.catch(() => {})
    this.#last.set(key, settled)
    void settled.then(() => {
      if (this.#last.get(key) === settled) this.#last.delete(key)
    })
    return mine
  }
}
