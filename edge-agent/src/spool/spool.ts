/**
 * The agent's durable queue on disk: one append-only log for all cameras, in segments.
 *
 *   append ─▶ [group commit: writev + fdatasync] ─▶ pending ─▶ stored (S3) ─▶ announced (Kafka) ─▶ forgotten
 *                                                      └▶ evicted, unreadable ─▶ lost ─▶ told ─▶ forgotten
 *
 * S1  `append` resolves only when the frame is on disk (fdatasync returned).
 * S2  After any crash, what was resolved is found again; a torn tail is cut off; a broken record in the middle is told as lost.
 * S3  A frame is forgotten only when both acknowledgements stand in the log.
 * S4  A write or sync that failed is never called done: the spool refuses everything from then on.
 * S5  Segments are deleted oldest first and only when all their frames are forgotten, so that no acknowledgement goes
 *     before the frame it belongs to.
 * S6  Every segment begins with the counters of all epochs still of interest: the highest seq survives its frames.
 */
import { closeSync, existsSync, mkdirSync, openSync, read, readdirSync, readFileSync, statfsSync, statSync, truncateSync, unlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as immediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Fault, toError } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import { sha256Hex } from '@frameloop/kit/object-store'
import { isSameProcess, startTicks } from '@frameloop/kit/process-identity'
import type { Bytes, EpochMs, Us } from '@frameloop/kit/units'
import type { CameraId, Epoch } from '@frameloop/schemas/ids'
import { chooseEvictions } from './budget.ts'
import { type Disk, realDisk } from './disk.ts'
import { encodeRecord, scanSegment } from './log-file.ts'

const readAt = promisify(read)

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
}

export interface Entry {
  readonly head: FrameHead
  readonly bytes: Bytes
  readonly cameraId: CameraId
  readonly seq: number
  readonly segment: number
  readonly bodyAt: Bytes
  /** S3's version id once it is stored. */
  stored: { readonly versionId: string } | undefined
  busy: boolean
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

/** What is captured is delivered, waiting or lost. */
export function accountOf(counters: readonly EpochCounter[], entries: Iterable<Entry>): Account[] {
  const waiting = new Map<string, number>()
  for (const { head } of entries) waiting.set(epochKey(head), (waiting.get(epochKey(head)) ?? 0) + 1)
  return counters.map((counter) => {
    const here = waiting.get(epochKey(counter)) ?? 0
    return { ...counter, waiting: here, unaccounted: counter.highestSeq - counter.delivered - counter.lost - here }
  })
}

export interface Loss {
  readonly cameraId: CameraId
  readonly epoch: Epoch
  readonly seqFrom: number
  readonly seqTo: number
  readonly reason: 'evicted' | 'unreadable'
  readonly lostAt: EpochMs
}

interface Ack {
  readonly epoch: Epoch
  readonly cameraId: CameraId
  readonly seq: number
  readonly versionId?: string
}

const kinds = { frame: 1, stored: 2, announced: 3, counters: 4, lost: 5, told: 6 } as const
const keyOf = (of: { readonly cameraId: string; readonly epoch: string; readonly seq: number }): string => `${of.cameraId} ${of.epoch} ${of.seq}`
const epochKey = (of: { readonly cameraId: string; readonly epoch: string }): string => `${of.cameraId} ${of.epoch}`
const segmentName = (n: number): string => `${String(n).padStart(8, '0')}.log`

export interface SpoolSettings {
  readonly folder: string
  /** Frames waiting may take this much. */
  readonly capacity: Bytes
  /** What stays free on the disk, whatever the capacity; 0 when absent. */
  readonly keepFree?: Bytes
  readonly segmentBytes: Bytes
  /** The real one when absent. */
  readonly disk?: Disk
}

interface Waiting {
  readonly parts: readonly Buffer[]
  readonly done: (segment: number, bodyAt: Bytes) => void
  readonly failed: (error: Error) => void
}

/** Frames that must have lain between those of one segment: of each epoch they were written in order of seq. */
function gapsBetween(frames: readonly FrameHead[]): Loss[] {
  const last = new Map<string, number>()
  const gaps: Loss[] = []
  for (const { cameraId, epoch, seq } of frames) {
    const before = last.get(epochKey({ cameraId, epoch }))
    if (before !== undefined && seq > before + 1) gaps.push({ cameraId, epoch, seqFrom: before + 1, seqTo: seq - 1, reason: 'unreadable', lostAt: Date.now() })
    last.set(epochKey({ cameraId, epoch }), seq)
  }
  return gaps
}

export class Spool {
  readonly #settings: SpoolSettings
  readonly #log: Log
  readonly #disk: Disk
  readonly #entries = new Map<string, Entry>()
  readonly #counters = new Map<string, EpochCounter>()
  readonly #losses = new Map<string, Loss>()
  /** Losses of each epoch whose record is not on disk yet: the counters that a segment begins with do not know of them. */
  readonly #unwritten = new Map<string, number>()
  /** Frames not yet forgotten, by segment. */
  readonly #alive = new Map<number, number>()
  readonly #readers = new Map<number, number>()
  #queue: Waiting[] = []
  #fresh: Entry[] = []
  #flushing: Promise<void> | undefined
  #segment = 0
  #file = -1
  #size: Bytes = 0
  #usedBytes: Bytes = 0
  /** Of the disk, when it was last asked. */
  #free = { at: 0, bytes: 0, used: 0 }
  #broken: Error | undefined
  readonly #wake = new Set<() => void>()

  private constructor(settings: SpoolSettings, log: Log) {
    this.#settings = settings
    this.#log = log
    this.#disk = settings.disk ?? realDisk
  }

  /** Opens a spool folder, makes it when missing, repairs what a crash left. Throws `SPOOL_LOCKED`, `SPOOL_BROKEN`. */
  static async open(settings: SpoolSettings, log: Log): Promise<Spool> {
    const spool = new Spool(settings, log)
    mkdirSync(settings.folder, { recursive: true, mode: 0o700 })
    const lock = join(settings.folder, 'lock')
    if (existsSync(lock)) {
      const [pid, ticks] = readFileSync(lock, 'utf8').split(' ')
      if (pid && Number(pid) !== process.pid && isSameProcess(Number(pid), ticks ?? '')) {
        throw new Fault('SPOOL_LOCKED', `The spool ${settings.folder} is in use by process ${pid}`, { folder: settings.folder, pid: Number(pid) })
      }
    }
    writeFileSync(lock, `${process.pid} ${startTicks(process.pid)}`)
    spool.#recover(true)
    spool.#fresh = [...spool.#entries.values()].filter(({ stored }) => !stored)
    await spool.#startSegment()
    return spool
  }

  /** A spool folder as it is, also while an agent writes to it: nothing in it is changed, and nothing can be put into it. */
  static inspect(folder: string, log: Log): Spool {
    if (!existsSync(folder)) throw new Fault('SPOOL_BROKEN', `There is no spool ${folder}`, { folder })
    const spool = new Spool({ folder, capacity: Number.POSITIVE_INFINITY, segmentBytes: 0 }, log)
    spool.#recover(false)
    spool.#broken = new Error('it was opened to be looked at')
    return spool
  }

  /** Frames that are not yet forgotten, in the order they came. */
  get entries(): IterableIterator<Entry> {
    return this.#entries.values()
  }

  /** Frames that wait to be stored and were not handed out before. */
  takeNew(): readonly Entry[] {
    const taken = this.#fresh
    this.#fresh = []
    return taken
  }

  /** Whether it has not been given up or forgotten. */
  holds(entry: Entry): boolean {
    return this.#entries.has(keyOf(entry.head))
  }

  get size(): { readonly frames: number; readonly bytes: Bytes; readonly capacity: Bytes } {
    return { frames: this.#entries.size, bytes: this.#usedBytes, capacity: this.#settings.capacity }
  }

  get counters(): readonly EpochCounter[] {
    return [...this.#counters.values()]
  }

  /** Losses that nobody has been told of. */
  get losses(): readonly Loss[] {
    return [...this.#losses.values()]
  }

  get account(): readonly Account[] {
    return accountOf(this.counters, this.#entries.values())
  }

  /** Of the disk, asked once a second. */
  #freeBytes(): Bytes {
    if (Date.now() - this.#free.at > 1_000) {
      const { bavail, bsize } = statfsSync(this.#settings.folder)
      this.#free = { at: Date.now(), bytes: bavail * bsize, used: this.#usedBytes }
    }
    return this.#free.bytes - Math.max(0, this.#usedBytes - this.#free.used)
  }

  /** S1: resolves when the frame is durable. Evicts older frames when the spool is full; throws `SPOOL_FULL` when that is not enough. */
  async append(head: FrameHead, bytes: Uint8Array): Promise<Entry> {
    const { capacity, keepFree = 0 } = this.#settings
    // giving up frames would not help: the disk has their bytes back when their whole segment goes
    const free = this.#freeBytes()
    if (free < keepFree + bytes.byteLength)
      throw new Fault('SPOOL_FULL', `The disk of the spool has ${free} bytes left, and ${keepFree} are to stay free`, { cameraId: head.cameraId })
    if (this.#usedBytes + bytes.byteLength > capacity) {
      for (const entry of chooseEvictions([...this.#entries.values()], this.#usedBytes, bytes.byteLength, capacity)) this.#lose(entry, 'evicted')
      if (this.#usedBytes + bytes.byteLength > capacity)
        throw new Fault('SPOOL_FULL', `The spool holds ${this.#usedBytes} of ${capacity} bytes and nothing in it may be given up`, { cameraId: head.cameraId })
    }
    this.#usedBytes += bytes.byteLength
    const { segment, bodyAt } = await this.#write(kinds.frame, head, bytes)
    const entry: Entry = { head, bytes: bytes.byteLength, cameraId: head.cameraId, seq: head.seq, segment, bodyAt, stored: undefined, busy: false, isEvent: head.isEvent ?? false }
    this.#remember(entry)
    this.#fresh.push(entry)
    this.#notify()
    return entry
  }

  async read(entry: Entry): Promise<Buffer> {
    let reader = this.#readers.get(entry.segment)
    if (reader === undefined) {
      reader = openSync(join(this.#settings.folder, segmentName(entry.segment)), 'r')
      this.#readers.set(entry.segment, reader)
    }
    const bytes = Buffer.allocUnsafe(entry.bytes)
    const { bytesRead } = await readAt(reader, bytes, 0, entry.bytes, entry.bodyAt)
    if (bytesRead !== entry.bytes) throw new Fault('SPOOL_BROKEN', `Segment ${segmentName(entry.segment)} ends before frame ${entry.seq} does`, { segment: entry.segment })
    return bytes
  }

  /** Waiting frames whose bytes are not what was captured. */
  async damaged(): Promise<Entry[]> {
    const found: Entry[] = []
    for (const entry of this.entries) {
      const bytes = await this.read(entry).catch(() => undefined)
      if (bytes === undefined || (entry.head.sha256 !== '' && sha256Hex(bytes) !== entry.head.sha256)) found.push(entry)
    }
    return found
  }

  /** S3 has it durably. */
  async markStored(entry: Entry, versionId: string): Promise<void> {
    await this.#write(kinds.stored, { cameraId: entry.cameraId, epoch: entry.head.epoch, seq: entry.seq, versionId } satisfies Ack)
    entry.stored = { versionId }
    this.#notify()
  }

  /** Kafka has acknowledged them; they are forgotten once this stands in the log. */
  async markAnnounced(entries: readonly Entry[]): Promise<void> {
    await this.#write(
      kinds.announced,
      entries.map((entry): Ack => ({ cameraId: entry.cameraId, epoch: entry.head.epoch, seq: entry.seq })),
    )
    for (const entry of entries) {
      this.#count(entry.head, 'delivered')
      this.#forget(entry)
    }
    this.#dropOldSegments()
  }

  /** A frame whose bytes cannot be delivered; it will be told as lost. */
  markUnreadable(entry: Entry): void {
    this.#lose(entry, 'unreadable')
  }

  async markTold(losses: readonly Loss[]): Promise<void> {
    await this.#write(
      kinds.told,
      losses.map((loss) => ({ cameraId: loss.cameraId, epoch: loss.epoch, seq: loss.seqFrom })),
    )
    for (const loss of losses) this.#losses.delete(keyOf({ ...loss, seq: loss.seqFrom }))
  }

  /** An epoch that has ended and whose every frame is forgotten and reported need not be remembered. */
  forgetEpoch(counter: EpochCounter): void {
    this.#counters.delete(epochKey(counter))
  }

  /** Resolves when something may have changed, or after `limit` ms. */
  changed(limit: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer)
        signal.removeEventListener('abort', done)
        this.#wake.delete(done)
        resolve()
      }
      const timer = setTimeout(done, limit)
      signal.addEventListener('abort', done, { once: true })
      this.#wake.add(done)
    })
  }

  async close(): Promise<void> {
    while (this.#flushing !== undefined) await this.#flushing
    if (this.#file >= 0) closeSync(this.#file)
    for (const reader of this.#readers.values()) closeSync(reader)
    unlinkSync(join(this.#settings.folder, 'lock'))
  }

  #notify(): void {
    for (const done of [...this.#wake]) done()
  }

  #remember(entry: Entry): void {
    const { head } = entry
    this.#entries.set(keyOf(head), entry)
    this.#alive.set(entry.segment, (this.#alive.get(entry.segment) ?? 0) + 1)
    const counter = this.#counters.get(epochKey(head))
    if (counter) counter.highestSeq = Math.max(counter.highestSeq, head.seq)
    else this.#counters.set(epochKey(head), { cameraId: head.cameraId, epoch: head.epoch, highestSeq: head.seq, forgottenSeq: 0, delivered: 0, lost: 0 })
  }

  #count(of: { readonly cameraId: string; readonly epoch: string }, as: 'delivered' | 'lost', frames = 1): void {
    const counter = this.#counters.get(epochKey(of))
    if (counter) counter[as] += frames
  }

  #forget(entry: Entry): void {
    if (!this.#entries.delete(keyOf(entry.head))) return
    this.#usedBytes -= entry.bytes
    this.#alive.set(entry.segment, (this.#alive.get(entry.segment) ?? 1) - 1)
    const counter = this.#counters.get(epochKey(entry.head))
    if (counter && entry.seq === counter.forgottenSeq + 1) {
      counter.forgottenSeq = entry.seq
      // later ones may have been forgotten before this one
      while (counter.forgottenSeq < counter.highestSeq && !this.#entries.has(keyOf({ ...counter, seq: counter.forgottenSeq + 1 }))) counter.forgottenSeq += 1
    }
  }

  #lose(entry: Entry, reason: Loss['reason']): void {
    const loss: Loss = { cameraId: entry.cameraId, epoch: entry.head.epoch, seqFrom: entry.seq, seqTo: entry.seq, reason, lostAt: Date.now() }
    this.#losses.set(keyOf(entry.head), loss)
    this.#count(loss, 'lost')
    this.#forget(entry)
    const key = epochKey(loss)
    this.#unwritten.set(key, (this.#unwritten.get(key) ?? 0) + 1)
    this.#write(kinds.lost, loss)
      .then(() => this.#unwritten.set(key, (this.#unwritten.get(key) ?? 1) - 1))
      .catch((thrown: unknown) => this.#log.error({ err: thrown }, 'loss not written'))
    this.#log.warn({ cameraId: loss.cameraId, epoch: loss.epoch, seq: loss.seqFrom, reason }, 'frame lost')
  }

  /** `repairs`: cuts torn tails off; otherwise the folder stays as it is. */
  #recover(repairs: boolean): void {
    const { folder } = this.#settings
    const segments = readdirSync(folder)
      .filter((name) => /^\d{8}\.log$/.test(name))
      .sort()
    segments.forEach((name, at) => {
      const number = Number.parseInt(name, 10)
      const path = join(folder, name)
      const file = readFileSync(path)
      const scan = scanSegment(file)
      if (scan.intactUntil < file.length && repairs) {
        this.#log.warn({ segment: name, cut: file.length - scan.intactUntil, last: at === segments.length - 1 }, 'torn tail cut off')
        truncateSync(path, scan.intactUntil)
      }
      this.#alive.set(number, this.#alive.get(number) ?? 0)
      for (const record of scan.records) this.#replay(number, record)
      this.#segment = Math.max(this.#segment, number)
      if (scan.broken.length > 0) {
        for (const { at: where, end } of scan.broken) this.#log.error({ segment: name, where, bytes: end - where }, 'record broken, skipped')
        const frames = scan.records.filter(({ kind }) => kind === kinds.frame).map(({ head }) => head as FrameHead)
        for (const loss of gapsBetween(frames)) {
          this.#losses.set(keyOf({ ...loss, seq: loss.seqFrom }), loss)
          this.#count(loss, 'lost', loss.seqTo - loss.seqFrom + 1)
        }
      }
    })
    // acknowledgements whose frames went with their segment say nothing by themselves: what is not here is forgotten
    const firstOpen = new Map<string, number>()
    for (const { head, seq } of this.#entries.values()) firstOpen.set(epochKey(head), Math.min(firstOpen.get(epochKey(head)) ?? seq, seq))
    for (const counter of this.#counters.values()) counter.forgottenSeq = Math.max(counter.forgottenSeq, (firstOpen.get(epochKey(counter)) ?? counter.highestSeq + 1) - 1)
    this.#usedBytes = [...this.#entries.values()].reduce((sum, entry) => sum + entry.bytes, 0)
  }

  #replay(segment: number, record: { readonly kind: number; readonly head: unknown; readonly bodyAt: Bytes; readonly bodyLength: Bytes }): void {
    switch (record.kind) {
      case kinds.frame: {
        const head = record.head as FrameHead
        this.#remember({
          head,
          bytes: record.bodyLength,
          cameraId: head.cameraId,
          seq: head.seq,
          segment,
          bodyAt: record.bodyAt,
          stored: undefined,
          busy: false,
          isEvent: head.isEvent ?? false,
        })
        return
      }
      case kinds.stored: {
        const ack = record.head as Ack
        const entry = this.#entries.get(keyOf(ack))
        if (entry) entry.stored = { versionId: ack.versionId ?? '' }
        return
      }
      case kinds.announced:
        for (const ack of record.head as Ack[]) {
          // the frame itself may have gone with its segment
          this.#count(ack, 'delivered')
          const entry = this.#entries.get(keyOf(ack))
          if (entry) this.#forget(entry)
        }
        return
      case kinds.counters:
        for (const counter of record.head as EpochCounter[]) {
          const known = this.#counters.get(epochKey(counter))
          // written before 0.2, which kept no account
          const { delivered = counter.forgottenSeq, lost = 0 } = counter as Partial<EpochCounter>
          if (known) {
            known.highestSeq = Math.max(known.highestSeq, counter.highestSeq)
            known.delivered = Math.max(known.delivered, delivered)
            known.lost = Math.max(known.lost, lost)
          } else this.#counters.set(epochKey(counter), { ...counter, delivered, lost })
        }
        return
      case kinds.lost: {
        const loss = record.head as Loss
        const entry = this.#entries.get(keyOf({ ...loss, seq: loss.seqFrom }))
        this.#count(loss, 'lost')
        if (entry) this.#forget(entry)
        this.#losses.set(keyOf({ ...loss, seq: loss.seqFrom }), loss)
        return
      }
      case kinds.told:
        for (const ack of record.head as Ack[]) this.#losses.delete(keyOf(ack))
        return
      default:
        this.#log.warn({ kind: record.kind, segment }, 'record of an unknown kind skipped')
    }
  }

  async #startSegment(): Promise<void> {
    if (this.#file >= 0) closeSync(this.#file)
    this.#segment += 1
    const { folder } = this.#settings
    this.#file = this.#disk.create(join(folder, segmentName(this.#segment)))
    this.#alive.set(this.#segment, 0)
    const counters = this.counters.map((counter) => ({ ...counter, lost: counter.lost - (this.#unwritten.get(epochKey(counter)) ?? 0) }))
    const header = encodeRecord(kinds.counters, counters, new Uint8Array())
    await this.#disk.write(this.#file, header)
    await this.#disk.sync(this.#file)
    this.#disk.syncFolder(folder)
    this.#size = header.reduce((sum, part) => sum + part.length, 0)
    this.#dropOldSegments()
  }

  /** S5. */
  #dropOldSegments(): void {
    for (const [segment, frames] of [...this.#alive].sort(([a], [b]) => a - b)) {
      if (segment === this.#segment || frames > 0 || this.#losses.size > 0) return
      const reader = this.#readers.get(segment)
      if (reader !== undefined) closeSync(reader)
      this.#readers.delete(segment)
      this.#alive.delete(segment)
      const path = join(this.#settings.folder, segmentName(segment))
      if (existsSync(path) && statSync(path).isFile()) this.#disk.remove(path)
    }
  }

  #write(kind: number, head: unknown, body: Uint8Array = new Uint8Array()): Promise<{ readonly segment: number; readonly bodyAt: Bytes }> {
    return new Promise((resolve, reject) => {
      if (this.#broken) {
        reject(new Fault('SPOOL_BROKEN', 'The spool takes nothing more since a write failed', {}, this.#broken))
        return
      }
      this.#queue.push({ parts: encodeRecord(kind, head, body), done: (segment, bodyAt) => resolve({ segment, bodyAt }), failed: reject })
      this.#flushing ??= this.#flush().finally(() => {
        this.#flushing = undefined
      })
    })
  }

  /** Group commit: all that waits goes out in one writev and one fdatasync. */
  async #flush(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue
      this.#queue = []
      try {
        if (this.#size > this.#settings.segmentBytes) {
          // those whose records are on disk must have counted them before the counters are written
          await immediate()
          await this.#startSegment()
        }
        await this.#disk.write(
          this.#file,
          batch.flatMap(({ parts }) => parts as Buffer[]),
        )
        await this.#disk.sync(this.#file)
      } catch (thrown) {
        this.#broken = toError(thrown)
        this.#log.error({ err: thrown }, 'spool write failed')
        for (const waiting of [...batch, ...this.#queue]) waiting.failed(new Fault('SPOOL_BROKEN', `The spool could not be written: ${this.#broken.message}`, {}, thrown))
        this.#queue = []
        return
      }
      for (const { parts, done } of batch) {
        const length = parts.reduce((sum, part) => sum + part.length, 0)
        done(this.#segment, this.#size + length - (parts[2]?.length ?? 0))
        this.#size += length
      }
    }
  }
}
