/** What the spool's log says: frames that wait, how far each epoch is, losses to be told. Records in, no disk. */
import type { Bytes, EpochMs, Us } from '@frameloop/kit/units'
import type { CameraId, Epoch } from '@frameloop/schemas/ids'
import { type Loss, Losses, type PackedLosses, unpackLosses } from './losses.ts'

/** What is known of a frame beside its bytes. */
export interface FrameHead {
  readonly cameraId: CameraId
  readonly epoch: Epoch
  readonly seq: number
  readonly kind: 'image' | 'clip'
  readonly extension: string
  readonly capturedAt: EpochMs
  readonly mediaOffsetUs: Us | null
  readonly width: number
  readonly height: number
  readonly sourceName: string
  readonly sha256: string
  readonly traceparent: string
  /** Share of the watched picture that moved, 0..1. */
  readonly motion?: number
  /** Something happened: worth more than the routine. */
  readonly isEvent?: boolean
  /** Of a clip: when its last frame was taken. */
  readonly endedAt?: EpochMs
}

export interface Entry {
  readonly head: FrameHead
  readonly bytes: Bytes
  /** Its bytes were left out when it was moved: S3 has them. */
  isEmpty: boolean
  readonly cameraId: CameraId
  readonly seq: number
  /** Where it came in: the segment, and where there its bytes began. */
  readonly born: number
  readonly bornAt: Bytes
  /** Where its bytes are now. */
  segment: number
  bodyAt: Bytes
  /** S3's version id once it is stored. */
  stored: { readonly versionId: string } | undefined
  busy: boolean
  /** Its last acknowledgement is on its way to the log. */
  leaving: boolean
  readonly isEvent: boolean
}

export interface EpochCounter {
  readonly cameraId: CameraId
  readonly epoch: Epoch
  highestSeq: number
  /** All frames up to here are forgotten. */
  forgottenSeq: number
  /** Frames of this epoch that both S3 and Kafka have acknowledged, and those told or to be told as lost. */
  delivered: number
  lost: number
}

export interface Account extends EpochCounter {
  readonly waiting: number
  /** Captured, and nobody knows where it is: 0, or the spool has a bug or was tampered with. */
  readonly unaccounted: number
}

export interface FrameKey {
  readonly cameraId: CameraId
  readonly epoch: Epoch
  readonly seq: number
}

/** Everything that is ever written to the log. A `frame` and a `moved` have the frame's bytes behind them. */
export type SpoolRecord =
  | { readonly kind: 'frame'; readonly head: FrameHead }
  | { readonly kind: 'stored'; readonly head: FrameKey & { readonly versionId: string } }
  | { readonly kind: 'announced'; readonly head: readonly FrameKey[] }
  | { readonly kind: 'opened'; readonly head: { readonly counters: readonly EpochCounter[]; readonly untold: readonly PackedLosses[] } }
  | { readonly kind: 'lost'; readonly head: Loss }
  | { readonly kind: 'told'; readonly head: readonly Loss[] }
  | { readonly kind: 'moving'; readonly head: readonly FrameKey[] }
  | {
      readonly kind: 'moved'
      readonly head: {
        readonly frame: FrameHead
        readonly born: number
        readonly bornAt?: Bytes
        readonly versionId?: string
        /** Of the frame, where it is no longer behind this: it is stored, and waits to be announced only. */
        readonly bytes?: Bytes
      }
    }

/** How they are numbered in the log. */
export const kinds = { frame: 1, stored: 2, announced: 3, opened: 4, lost: 5, told: 6, moving: 7, moved: 8 } as const
const kindOf = new Map<number, SpoolRecord['kind']>(Object.entries(kinds).map(([kind, number]) => [number, kind as SpoolRecord['kind']]))

/** Undefined for a kind that only a later version knows. */
export function recordFrom(number: number, head: unknown): SpoolRecord | undefined {
  const kind = kindOf.get(number)
  return kind && ({ kind, head } as SpoolRecord)
}

/** The sha256 of the body in a record's head; empty where it has none. */
export function digestIn(record: SpoolRecord | undefined): string {
  if (record?.kind === 'frame') return record.head.sha256
  return record?.kind === 'moved' && record.head.bytes === undefined ? record.head.frame.sha256 : ''
}

/** What a stored frame takes: its bytes are needed no more; its record is, here in memory and in the log when it is moved. */
const storedBytes: Bytes = 4_096
export const heldBytes = ({ bytes, stored }: Entry): Bytes => (stored ? Math.min(bytes, storedBytes) : bytes)

const keyOf = (of: { readonly cameraId: string; readonly epoch: string; readonly seq: number }): string => `${of.cameraId} ${of.epoch} ${of.seq}`
const epochKey = (of: { readonly cameraId: string; readonly epoch: string }): string => `${of.cameraId} ${of.epoch}`

interface Place {
  readonly segment: number
  readonly bodyAt: Bytes
  readonly born?: number
  readonly bornAt?: Bytes
  readonly versionId?: string | undefined
  readonly isEmpty?: boolean
}

interface Segment {
  /** Frames in it that are not yet forgotten. */
  frames: number
  bytes: Bytes
}

export class Contents {
  readonly #entries = new Map<string, Entry>()
  readonly #counters = new Map<string, EpochCounter>()
  readonly losses = new Losses()
  readonly #segments = new Map<number, Segment>()
  #waitingBytes: Bytes = 0
  #logBytes: Bytes = 0

  /** Frames that are not yet forgotten, in the order they came. */
  get entries(): IterableIterator<Entry> {
    return this.#entries.values()
  }

  get frames(): number {
    return this.#entries.size
  }

  get waitingBytes(): Bytes {
    return this.#waitingBytes
  }

  /** All segments, with what is no longer needed in them. */
  get logBytes(): Bytes {
    return this.#logBytes
  }

  get counters(): EpochCounter[] {
    return [...this.#counters.values()]
  }

  holds(of: FrameKey): boolean {
    return this.#entries.has(keyOf(of))
  }

  /** The oldest segment, and how many frames in it are not forgotten. */
  get oldest(): { readonly segment: number; readonly frames: number } | undefined {
    let oldest: number | undefined
    for (const segment of this.#segments.keys()) if (oldest === undefined || segment < oldest) oldest = segment
    return oldest === undefined ? undefined : { segment: oldest, frames: this.#segments.get(oldest)?.frames ?? 0 }
  }

  grow(segment: number, by: Bytes): void {
    const known = this.#segments.get(segment) ?? { frames: 0, bytes: 0 }
    known.bytes += by
    this.#logBytes += by
    this.#segments.set(segment, known)
  }

  drop(segment: number): void {
    this.#logBytes -= this.#segments.get(segment)?.bytes ?? 0
    this.#segments.delete(segment)
  }

  put(head: FrameHead, bytes: Bytes, place: Place): Entry {
    const { cameraId, epoch, seq } = head
    const { segment, bodyAt, born = segment, bornAt = bodyAt, versionId, isEmpty = false } = place
    const stored = versionId === undefined ? undefined : { versionId }
    const entry: Entry = { head, bytes, isEmpty, cameraId, seq, born, bornAt, segment, bodyAt, stored, busy: stored !== undefined, leaving: false, isEvent: head.isEvent ?? false }
    this.#entries.set(keyOf(head), entry)
    this.#waitingBytes += heldBytes(entry)
    this.#inSegment(segment, 1)
    const counter = this.#counters.get(epochKey(head))
    if (counter) counter.highestSeq = Math.max(counter.highestSeq, seq)
    else this.#counters.set(epochKey(head), { cameraId, epoch, highestSeq: seq, forgottenSeq: 0, delivered: 0, lost: 0 })
    return entry
  }

  /** S3 has it: it takes no more room than its record. */
  store(entry: Entry, versionId: string): void {
    const isHeld = this.#entries.get(keyOf(entry.head)) === entry
    if (isHeld) this.#waitingBytes -= heldBytes(entry)
    entry.stored = { versionId }
    // giving it up would save nothing
    entry.busy = true
    if (isHeld) this.#waitingBytes += heldBytes(entry)
  }

  move(entry: Entry, segment: number, bodyAt: Bytes, isEmpty = false): void {
    if (this.#entries.get(keyOf(entry.head)) !== entry) return
    entry.isEmpty = isEmpty
    this.#inSegment(entry.segment, -1)
    this.#inSegment(segment, 1)
    entry.segment = segment
    entry.bodyAt = bodyAt
  }

  deliver(key: FrameKey): void {
    const counter = this.#counters.get(epochKey(key))
    if (counter) counter.delivered += 1
    this.#forget(key)
  }

  lose(loss: Loss): void {
    const counter = this.#counters.get(epochKey(loss))
    if (counter) counter.lost += loss.seqTo - loss.seqFrom + 1
    for (let seq = loss.seqFrom; seq <= loss.seqTo; seq += 1) this.#forget({ ...loss, seq })
    this.losses.add(loss)
  }

  forgetEpoch(counter: EpochCounter): void {
    const now = this.#counters.get(epochKey(counter))
    // something of it came meanwhile
    if (now && now.forgottenSeq < now.highestSeq) return
    this.#counters.delete(epochKey(counter))
  }

  /** What a segment begins with; `unwritten`: losses whose own record comes only after it. */
  opening(unwritten: Iterable<Loss>): Extract<SpoolRecord, { kind: 'opened' }>['head'] {
    const untold = new Losses(this.losses.all)
    const later = new Map<string, number>()
    for (const loss of unwritten) {
      untold.remove(loss)
      later.set(epochKey(loss), (later.get(epochKey(loss)) ?? 0) + loss.seqTo - loss.seqFrom + 1)
    }
    return { counters: this.counters.map((counter) => ({ ...counter, lost: counter.lost - (later.get(epochKey(counter)) ?? 0) })), untold: untold.pack() }
  }

  /** What is captured is delivered, waiting or lost. */
  get account(): Account[] {
    const waiting = new Map<string, number>()
    for (const { head } of this.entries) waiting.set(epochKey(head), (waiting.get(epochKey(head)) ?? 0) + 1)
    return this.counters.map((counter) => {
      const here = waiting.get(epochKey(counter)) ?? 0
      return { ...counter, waiting: here, unaccounted: counter.highestSeq - counter.delivered - counter.lost - here }
    })
  }

  #inSegment(segment: number, frames: number): void {
    const known = this.#segments.get(segment) ?? { frames: 0, bytes: 0 }
    known.frames += frames
    this.#segments.set(segment, known)
  }

  #forget(key: FrameKey): void {
    const entry = this.#entries.get(keyOf(key))
    if (!entry) return
    this.#entries.delete(keyOf(key))
    this.#waitingBytes -= heldBytes(entry)
    this.#inSegment(entry.segment, -1)
    const counter = this.#counters.get(epochKey(key))
    // later ones may have been forgotten before this one
    if (counter) while (counter.forgottenSeq < counter.highestSeq && !this.holds({ ...counter, seq: counter.forgottenSeq + 1 })) counter.forgottenSeq += 1
  }

  /** After the last record of a log that is read again. */
  settle(): void {
    // what was moved takes its place among those it came with
    const inOrder = [...this.#entries].sort(([, a], [, b]) => a.born - b.born || a.bornAt - b.bornAt)
    this.#entries.clear()
    for (const [key, entry] of inOrder) this.#entries.set(key, entry)
    // not before: what was moved comes late in the log, and acknowledgements whose frames went with their segment say nothing
    const firstOpen = new Map<string, number>()
    for (const { head, seq } of this.entries) firstOpen.set(epochKey(head), Math.min(firstOpen.get(epochKey(head)) ?? seq, seq))
    for (const counter of this.#counters.values()) counter.forgottenSeq = (firstOpen.get(epochKey(counter)) ?? counter.highestSeq + 1) - 1
  }

  entryOf(key: FrameKey): Entry | undefined {
    return this.#entries.get(keyOf(key))
  }

  /** The counters that a segment begins with outweigh what was counted from what is left of those before. */
  raise(counters: readonly EpochCounter[]): void {
    for (const counter of counters) {
      const known = this.#counters.get(epochKey(counter))
      if (known) {
        known.highestSeq = Math.max(known.highestSeq, counter.highestSeq)
        known.delivered = Math.max(known.delivered, counter.delivered)
        known.lost = Math.max(known.lost, counter.lost)
      } else this.#counters.set(epochKey(counter), { ...counter })
    }
  }
}

/**
 * Reads a log again and finds what is missing in it: of each epoch frames were written in order of seq, what was moved was
 * announced before, and a segment begins with how far each epoch was.
 */
export class Replay {
  readonly contents = new Contents()
  readonly #lastSeq = new Map<string, number>()
  readonly #missing: Loss[] = []
  readonly #moving = new Map<string, FrameKey>()
  /** What became of frames whose record is not here. */
  readonly #known = new Losses()

  apply(segment: number, record: SpoolRecord, bodyAt: Bytes, bodyLength: Bytes): void {
    const { contents } = this
    switch (record.kind) {
      case 'frame':
        this.#reach(record.head, record.head.seq - 1, 0)
        this.#lastSeq.set(epochKey(record.head), record.head.seq)
        contents.put(record.head, bodyLength, { segment, bodyAt })
        return
      case 'stored': {
        const entry = contents.entryOf(record.head)
        if (entry) contents.store(entry, record.head.versionId)
        return
      }
      case 'announced':
        for (const key of record.head) {
          this.#moving.delete(keyOf(key))
          if (!contents.holds(key)) this.#known.add(unreadable(key, key.seq, key.seq))
          contents.deliver(key)
        }
        return
      case 'opened':
        for (const counter of record.head.counters) this.#reach(counter, counter.highestSeq, counter.highestSeq)
        contents.raise(record.head.counters)
        for (const loss of record.head.untold.flatMap(unpackLosses)) {
          contents.losses.add(loss)
          this.#known.add(loss)
        }
        return
      case 'lost':
        contents.lose(record.head)
        this.#known.add(record.head)
        return
      case 'told':
        for (const loss of record.head) contents.losses.remove(loss)
        return
      case 'moving':
        for (const key of record.head) this.#moving.set(keyOf(key), key)
        return
      case 'moved': {
        const { frame, born, bornAt, versionId, bytes } = record.head
        const isEmpty = bytes !== undefined
        this.#moving.delete(keyOf(frame))
        const entry = contents.entryOf(frame)
        if (entry) {
          // its own word that it was stored may not have been written before this
          if (versionId !== undefined) contents.store(entry, versionId)
          contents.move(entry, segment, bodyAt, isEmpty)
        } else {
          // logs of earlier versions do not say where in its segment it came in
          contents.put(frame, bytes ?? bodyLength, { segment, bodyAt, born, bornAt: bornAt ?? 0, versionId, isEmpty })
          this.#known.add(unreadable(frame, frame.seq, frame.seq))
        }
      }
    }
  }

  /** Losses that nobody knew of, because the disk was damaged; the contents count them. */
  finish(): Loss[] {
    const { contents } = this
    const gone = [...this.#moving.values()].filter((key) => !contents.holds(key)).map((key) => unreadable(key, key.seq, key.seq))
    // a frame may be missed in both
    const found = new Losses([...this.#missing, ...gone]).all.flatMap((range) => this.#known.missing(range))
    for (const loss of found) contents.lose(loss)
    contents.settle()
    return found
  }

  /** All frames of an epoch up to `seq` were written before; `since`: where it was when the log begins. */
  #reach(of: { readonly cameraId: CameraId; readonly epoch: Epoch }, seq: number, since: number): void {
    const last = this.#lastSeq.get(epochKey(of)) ?? since
    if (last < seq) this.#missing.push(unreadable(of, last + 1, seq))
    this.#lastSeq.set(epochKey(of), Math.max(last, seq))
  }
}

const unreadable = ({ cameraId, epoch }: { readonly cameraId: CameraId; readonly epoch: Epoch }, seqFrom: number, seqTo: number): Loss => {
  return { cameraId, epoch, seqFrom, seqTo, reason: 'unreadable', lostAt: Date.now() }
}
