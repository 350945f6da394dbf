/**
 * Finds the record that kills the process: out of memory, a crash inside a native library, a decode without end.
 * Whoever dies leaves no word, so a stage notes where it begins, and looks closer after it has begun there too often:
 *
 *   begins with records at the same offset the third time ─▶ one record at a time, each noted before it is worked on
 *   died three times on the same record       ─▶ that record is a dead letter, unworked
 *
 * A1  Notes are made before the work they are about, and never inside its transaction.
 * A2  Ending as asked is no death: it takes the note back. Ending by an exception that nobody caught is one.
 * A3  A process dies once: whatever fails while it lives, and however often it begins again, counts once.
 */
import { attemptsTopic } from '@frameloop/schemas/topics'
import type { Bus, Position, Produced, TopicPartition } from './bus.ts'

export interface Note {
  /** Where reading began. */
  readonly offset: number
  /** How often it began there and did not end as asked. */
  readonly starts: number
  /** The record that was being worked on alone, and how often. */
  readonly trying?: number
  readonly tries?: number
}

const startLimit = 3
const tryLimit = 3

/** The note for beginning at `offset`. */
export function began(before: Note | undefined, offset: number): Note {
  if (before?.trying === offset) return before
  return before?.offset === offset ? { offset, starts: before.starts + 1 } : { offset, starts: 1 }
}

export function isSuspicious(note: Note | undefined): boolean {
  return note !== undefined && (note.starts >= startLimit || note.trying !== undefined)
}

/** What to do with the record at `offset`, alone: give it up, or work on it with this note made before. */
export function beforeTrying(note: Note, offset: number): { readonly giveUp: true } | { readonly giveUp: false; readonly note: Note } {
  const tries = note.trying === offset ? (note.tries ?? 0) : 0
  return tries >= tryLimit ? { giveUp: true } : { giveUp: false, note: { ...note, trying: offset, tries: tries + 1 } }
}

const keyOf = (stage: string, { topic, partition }: TopicPartition): string => `${stage} ${topic} ${partition}`

/** The notes of one stage, in a compacted topic. */
export class Attempts {
  readonly #bus: Bus
  readonly #stage: string
  readonly #notes = new Map<string, Note>()
  /** Notes of partitions where this process has begun. */
  readonly #begun = new Set<string>()
  /** What this process has counted already (A3). */
  readonly #counted = new Set<string>()
  /** Records that went well alone since suspicion arose. */
  #passed = 0

  constructor(bus: Bus, stage: string) {
    this.#bus = bus
    this.#stage = stage
  }

  async load(signal: AbortSignal): Promise<void> {
    const name = `frameloop.${this.#stage}.attempts`
    this.#notes.clear()
    this.#begun.clear()
    for await (const { key, value } of this.#bus.readTopic(name, attemptsTopic, signal)) {
      if (!key.startsWith(`${this.#stage} `)) continue
      if (value.length === 0) this.#notes.delete(key)
      else this.#notes.set(key, JSON.parse(value.toString('utf8')) as Note)
    }
  }

  #set(at: TopicPartition, note: Note | undefined): Produced {
    const key = keyOf(this.#stage, at)
    if (note) this.#notes.set(key, note)
    else this.#notes.delete(key)
    return { topic: attemptsTopic, key, value: note ? Buffer.from(JSON.stringify(note)) : null, headers: {} }
  }

  /** Notes that reading begins here. */
  begin(positions: readonly Position[]): Produced[] {
    return positions.map((position) => {
      this.#begun.add(keyOf(this.#stage, position))
      const before = this.#notes.get(keyOf(this.#stage, position))
      return this.#set(position, this.#countOnce('begin', position) || !before ? began(before, position.offset) : before)
    })
  }

  /** A2. */
  end(partitions: readonly TopicPartition[]): Produced[] {
    return partitions.map((partition) => this.#set(partition, undefined))
  }

  #countOnce(what: string, { topic, partition, offset }: Position): boolean {
    const name = `${what} ${topic} ${partition} ${offset}`
    const isFirst = !this.#counted.has(name)
    this.#counted.add(name)
    return isFirst
  }

  get suspects(): boolean {
    return [...this.#begun].some((key) => isSuspicious(this.#notes.get(key)))
  }

  /** The note to make before working on a record alone, or that it is given up. */
  before(record: Position): { readonly giveUp: true } | { readonly giveUp: false; readonly produced: Produced } {
    const note = this.#notes.get(keyOf(this.#stage, record)) ?? { offset: record.offset, starts: 0 }
    // the process has lived through it: tried again, it is the same try
    if (!this.#countOnce('try', record)) return { giveUp: false, produced: this.#set(record, note.trying === record.offset ? note : { ...note, trying: record.offset, tries: 1 }) }
    const decided = beforeTrying(note, record.offset)
    return decided.giveUp ? decided : { giveUp: false, produced: this.#set(record, decided.note) }
  }

  /** A record that was worked on alone is through; after `enough` of them nothing is suspected any more. */
  passed(enough: number): Produced[] {
    this.#passed += 1
    if (this.#passed < enough) return []
    this.#passed = 0
    return [...this.#begun]
      .filter((key) => isSuspicious(this.#notes.get(key)))
      .map((key) => {
        this.#notes.delete(key)
        return { topic: attemptsTopic, key, value: null, headers: {} }
      })
  }
}
