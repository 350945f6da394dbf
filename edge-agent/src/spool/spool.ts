/**
 * The agent's durable queue on disk: one append-only log for all cameras, in segments.
 *
 *   append ─▶ [group commit: writev + fdatasync] ─▶ pending ─▶ stored (S3) ─▶ announced (Kafka) ─▶ forgotten
 *                                                      └▶ evicted, unreadable ─▶ lost ─▶ told ─▶ forgotten
 *
 * S1  `append` resolves only when the frame is on disk (fdatasync returned).
 * S2  After any crash, what was resolved is found again; a torn tail is cut off; a broken record in the middle is told as lost.
 * S3  A frame is forgotten only when both acknowledgements stand in the log.
 * S4  A write or sync that failed is never called done: the spool refuses everything from then on. A write that found the disk
 *     full is taken back: frames are refused, and what is said about others waits until there is room.
 * S5  Segments are deleted oldest first and only when all their frames are forgotten or moved, so that no acknowledgement
 *     goes before the frame it belongs to.
 * S6  Every segment begins with the counters of all epochs still of interest and the losses to be told: both survive the
 *     segments in which they arose.
 * S7  A few frames do not hold a segment: when the log is a quarter larger than what waits, those of the oldest segment are
 *     written again at its end. At most five bytes are moved for each byte captured.
 */
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  read,
  readdirSync,
  readFileSync,
  readSync,
  statfsSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { sha256Hex } from '@frameloop/kit/digest'
import { Fault, toError } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import { isSameProcess, startTicks } from '@frameloop/kit/process-identity'
import type { Bytes, EpochMs, Ms } from '@frameloop/kit/units'
import { chooseEvictions } from './budget.ts'
import {
  type Account,
  Contents,
  digestIn,
  type Entry,
  type EpochCounter,
  type FrameHead,
  type FrameKey,
  heldBytes,
  kinds,
  Replay,
  recordFrom,
  type SpoolRecord,
} from './contents.ts'
import { type Disk, realDisk } from './disk.ts'
import { encodeRecord, scanSegment } from './log-file.ts'
import type { Loss } from './losses.ts'

const readAt = promisify(read)

const keyOf = ({ head: { cameraId, epoch, seq } }: Entry): FrameKey => ({ cameraId, epoch, seq })
const segmentName = (n: number): string => `${String(n).padStart(8, '0')}.log`
/** The log against what waits in it, before old segments are emptied. */
const slack = 1.25
/** Bytes moved for each byte captured, at most; four is what it takes when all that is captured is soon given up. */
const mostMoved = 5
const movedAtOnce: Bytes = 1_000_000
/** How long records that nobody waits for are gathered. */
const unhurried: Ms = 50
/** What goes out in one write, beyond a single record. */
const commitBytes: Bytes = 8_000_000
/** Between two looks at a disk that is full. */
const fullPause: Ms = 500

export interface SpoolSettings {
  readonly folder: string
  /** Frames waiting may take this much. */
  readonly capacity: Bytes
  /** What stays free on the disk, whatever the capacity; 0 when absent. */
  readonly keepFree?: Bytes
  readonly segmentBytes: Bytes
  /** The real one when absent. */
  readonly disk?: Disk
  /** From then on nothing waits for room on the disk any more. */
  readonly signal?: AbortSignal
}

interface Waiting {
  readonly kind: SpoolRecord['kind']
  readonly parts: readonly Buffer[]
  readonly done: (segment: number, bodyAt: Bytes) => void
  readonly failed: (error: Error) => void
}

const sizeOf = (parts: readonly Buffer[]): Bytes => parts.reduce((sum, part) => sum + part.length, 0)
const isDiskFull = (thrown: unknown): boolean => ['ENOSPC', 'EDQUOT'].includes((thrown as NodeJS.ErrnoException).code ?? '')

/** What is said about frames, and must be said; frames are taken again, and moved another time. */
const isWord = ({ kind }: Waiting): boolean => !['frame', 'moving', 'moved'].includes(kind)

const sector: Bytes = 4_096

/** A file; where the disk cannot read some of it, zeros stand for that: what lies before and behind it is still there. */
function readWhatThereIs(path: string, log: Log): Buffer {
  try {
    return readFileSync(path)
  } catch (thrown) {
    if ((thrown as NodeJS.ErrnoException).code !== 'EIO') throw thrown
    const file = openSync(path, 'r')
    try {
      const bytes = Buffer.alloc(fstatSync(file).size)
      let lost: Bytes = 0
      for (let at = 0; at < bytes.length; at += sector)
        try {
          readSync(file, bytes, at, Math.min(sector, bytes.length - at), at)
        } catch {
          lost += Math.min(sector, bytes.length - at)
        }
      log.error({ err: thrown, path, lost }, 'the disk cannot read all of a segment')
      return bytes
    } finally {
      closeSync(file)
    }
  }
}

/** Durably: what was cut off must not be there again when this is no longer the last segment. */
function cutFile(path: string, length: Bytes): void {
  const file = openSync(path, 'r+')
  try {
    ftruncateSync(file, length)
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
}

/** Whether what lies on the disk is not what was written: nobody will ever read it. */
export const isDamage = (thrown: unknown): boolean =>
  (thrown instanceof Fault && thrown.code === 'SPOOL_BROKEN') || ['EIO', 'ENOENT'].includes((thrown as NodeJS.ErrnoException).code ?? '')

export class Spool {
  readonly #settings: SpoolSettings
  readonly #log: Log
  readonly #disk: Disk
  #contents = new Contents()
  /** Losses whose record is not on disk yet. */
  readonly #unwritten = new Set<Loss>()
  #queue: Waiting[] = []
  /** What each of those who take frames as they come has not seen yet. */
  readonly #unseen: Entry[][] = []
  #flushing: Promise<void> | undefined
  /** Writes what is in no hurry. */
  #later: NodeJS.Timeout | undefined
  #moving: Promise<void> | undefined
  /** Bytes that may be moved. */
  #moveCredit: Bytes = 0
  #isClosing = false
  #segment = 0
  #file = -1
  #size: Bytes = 0
  /** Bytes of frames on their way to the log. */
  #arriving: Bytes = 0
  /** Of the disk, when it was last asked. */
  #free = { at: Number.NEGATIVE_INFINITY, bytes: 0, logBytes: 0 }
  #broken: Error | undefined
  /** The disk has refused what was written last. */
  #isFull = false
  readonly #wake = new Set<() => void>()

  private constructor(settings: SpoolSettings, log: Log) {
    this.#settings = settings
    this.#log = log
    this.#disk = settings.disk ?? realDisk
  }

  /** Opens a spool folder, makes it when missing, repairs what a crash left. Throws `SPOOL_LOCKED`, `SPOOL_FULL`, `SPOOL_BROKEN`. */
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
    try {
      return await spool.#begin(lock)
    } catch (thrown) {
      throw isDiskFull(thrown) ? new Fault('SPOOL_FULL', `The disk of the spool ${settings.folder} is full`, { folder: settings.folder }, thrown) : thrown
    }
  }

  async #begin(lock: string): Promise<Spool> {
    writeFileSync(lock, `${process.pid} ${startTicks(process.pid)}`)
    const damaged = this.#recover(true)
    // what a killed agent had written and not synced was read as if it were there for good
    this.#syncLast()
    for (const loss of damaged) this.#unwritten.add(loss)
    await this.#startSegment()
    await Promise.all(damaged.map((loss) => this.#writeLoss(loss)))
    return this
  }

  /** A spool folder as it is, also while an agent writes to it: nothing in it is changed, and nothing can be put into it. */
  static inspect(folder: string, log: Log): Spool {
    if (!existsSync(folder)) throw new Fault('SPOOL_BROKEN', `There is no spool ${folder}`, { folder })
    const spool = new Spool({ folder, capacity: Number.POSITIVE_INFINITY, segmentBytes: 0 }, log)
    for (;;) {
      try {
        spool.#recover(false)
        break
      } catch (thrown) {
        // its agent has removed a segment meanwhile: there is less to see now
        if (!(thrown instanceof Error && 'code' in thrown && thrown.code === 'ENOENT')) throw thrown
      }
    }
    spool.#broken = new Error('it was opened to be looked at')
    return spool
  }

  /** Frames that are not yet forgotten, in the order they came. */
  get entries(): IterableIterator<Entry> {
    return this.#contents.entries
  }

  /** Frames as they come: first those that are there, then with each call what came since the last. */
  arrivals(): () => readonly Entry[] {
    const unseen = [...this.entries]
    this.#unseen.push(unseen)
    return () => unseen.splice(0)
  }

  /** Whether it has not been given up or forgotten. */
  holds(entry: Entry): boolean {
    return this.#contents.holds(entry.head)
  }

  /** `logBytes`: what it takes on the disk. */
  get size(): { readonly frames: number; readonly bytes: Bytes; readonly capacity: Bytes; readonly logBytes: Bytes } {
    const { frames, waitingBytes, logBytes } = this.#contents
    return { frames, bytes: waitingBytes, capacity: this.#settings.capacity, logBytes }
  }

  /** When the frame that waits longest was captured; 0 where none does. */
  get oldestAt(): EpochMs {
    const first = this.entries.next()
    return first.done ? 0 : first.value.head.capturedAt
  }

  get counters(): readonly EpochCounter[] {
    return this.#contents.counters
  }

  /** Losses that nobody has been told of; the first ones. */
  losses(limit = Number.POSITIVE_INFINITY): readonly Loss[] {
    return this.#contents.losses.first(limit)
  }

  get account(): readonly Account[] {
    return this.#contents.account
  }

  /** Of the disk, asked once a second. */
  #freeBytes(): Bytes {
    const { logBytes } = this.#contents
    if (performance.now() - this.#free.at > 1_000) {
      const { bavail, bsize } = statfsSync(this.#settings.folder)
      this.#free = { at: performance.now(), bytes: bavail * bsize, logBytes }
    }
    return this.#free.bytes - (logBytes - this.#free.logBytes) - this.#arriving
  }

  /** How many bytes of frames may wait: less than the capacity where the disk is too small for it. What waits is not given up because the disk shrinks. */
  #room(free: Bytes): Bytes {
    const { capacity, keepFree = 0, segmentBytes } = this.#settings
    const { logBytes, waitingBytes } = this.#contents
    const onDisk = logBytes + free - keepFree
    return Math.min(capacity, Math.max(waitingBytes + this.#arriving, (onDisk - 2 * segmentBytes) / slack))
  }

  /** Whether the disk has so much to give beside what is to stay free. */
  leavesFree(bytes: Bytes): boolean {
    return this.#freeBytes() - bytes >= (this.#settings.keepFree ?? 0)
  }

  /**
   * S1: resolves when the frame is durable. Evicts older frames when the spool is full, where it `mayEvict`; throws `SPOOL_FULL`
   * when that is not enough.
   */
  async append(head: FrameHead, bytes: Uint8Array, mayEvict = true): Promise<Entry> {
    const { capacity, keepFree = 0, segmentBytes } = this.#settings
    const length = bytes.byteLength
    const free = this.#freeBytes()
    const room = this.#room(free)
    const used = (): Bytes => this.#contents.waitingBytes + this.#arriving
    this.#moveCredit = Math.min(this.#moveCredit + mostMoved * length, Math.max(capacity, segmentBytes))
    const hasNoRoom = free < keepFree + length
    if (mayEvict && !hasNoRoom && used() + length > room) {
      const chosen = chooseEvictions([...this.entries], used(), length, room)
      // nothing is given up for what does not fit all the same
      if (used() + length - chosen.reduce((sum, entry) => sum + entry.bytes, 0) <= room) for (const entry of chosen) this.#lose(entry, 'evicted')
    }
    // on a full disk for as long as there is a segment's worth of what is no longer needed
    const limit = hasNoRoom ? this.#contents.waitingBytes + segmentBytes : room * slack + segmentBytes
    this.#shrink(limit, free)
    if (hasNoRoom) throw new Fault('SPOOL_FULL', `The disk of the spool has ${free} bytes left, and ${keepFree} are to stay free`, { cameraId: head.cameraId })
    if (used() + length > room)
      throw new Fault('SPOOL_FULL', `The spool holds ${used()} of ${Math.floor(room)} bytes and nothing in it may be given up`, { cameraId: head.cameraId })
    this.#arriving += length
    try {
      // faster than segments can be emptied: one waits for the other
      if (this.#contents.logBytes > limit + segmentBytes) await this.#moving
      const place = await this.#write({ kind: 'frame', head }, bytes)
      const entry = this.#contents.put(head, length, place)
      for (const unseen of this.#unseen) unseen.push(entry)
      this.#notify()
      return entry
    } finally {
      this.#arriving -= length
    }
  }

  /** A frame's bytes; in `room`, where it is given one. */
  async read({ segment, bodyAt, bytes: length, seq }: Entry, room = Buffer.allocUnsafe(length)): Promise<Buffer<ArrayBuffer>> {
    const file = openSync(join(this.#settings.folder, segmentName(segment)), 'r')
    try {
      const { bytesRead } = await readAt(file, room, 0, length, bodyAt)
      if (bytesRead !== length) throw new Fault('SPOOL_BROKEN', `Segment ${segmentName(segment)} ends before frame ${seq} does`, { segment })
      return room.subarray(0, length)
    } finally {
      closeSync(file)
    }
  }

  /** Whether the segment it was in is no longer there. */
  hasGone({ segment }: Entry): boolean {
    return !existsSync(join(this.#settings.folder, segmentName(segment)))
  }

  /** Waiting frames whose bytes are not what was captured. Those of a segment that its agent has removed meanwhile were delivered or moved. */
  async damaged(): Promise<Entry[]> {
    const found: Entry[] = []
    for (const entry of this.entries) {
      if (entry.isEmpty) continue
      const bytes = await this.read(entry).catch(() => undefined)
      if (bytes === undefined && this.hasGone(entry)) continue
      if (bytes === undefined || (entry.head.sha256 !== '' && sha256Hex(bytes) !== entry.head.sha256)) found.push(entry)
    }
    return found
  }

  /**
   * S3 has it durably. It may be announced at once: this stands in the log before its announcement does. Nobody waits for a
   * sync of it, so it goes with what is written next: whoever loses it uploads the frame once more, and finds it there.
   */
  async markStored(entry: Entry, versionId: string): Promise<void> {
    this.#contents.store(entry, versionId)
    this.#notify()
    await this.#write({ kind: 'stored', head: { ...keyOf(entry), versionId } }, undefined, unhurried)
  }

  /** Kafka has acknowledged them; they are forgotten once this stands in the log. */
  async markAnnounced(entries: readonly Entry[]): Promise<void> {
    // what is moved is never written behind its own acknowledgement
    for (const entry of entries) entry.leaving = true
    await this.#write({ kind: 'announced', head: entries.map(keyOf) })
    for (const { head } of entries) this.#contents.deliver(head)
    this.#dropOldSegments()
  }

  /** A frame whose bytes cannot be delivered; it will be told as lost. */
  markUnreadable(entry: Entry): void {
    this.#lose(entry, 'unreadable')
  }

  async markTold(losses: readonly Loss[]): Promise<void> {
    await this.#write({ kind: 'told', head: losses })
    for (const loss of losses) this.#contents.losses.remove(loss)
  }

  /** An epoch that has ended and whose every frame is forgotten and reported need not be remembered. */
  forgetEpoch(counter: EpochCounter): void {
    this.#contents.forgetEpoch(counter)
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
    this.#isClosing = true
    this.#flushNow()
    while (this.#flushing !== undefined || this.#moving !== undefined) await (this.#moving ?? this.#flushing)
    if (this.#file >= 0) closeSync(this.#file)
    unlinkSync(join(this.#settings.folder, 'lock'))
  }

  #notify(): void {
    for (const done of [...this.#wake]) done()
  }

  #lose(entry: Entry, reason: Loss['reason']): void {
    // whoever else met it was first
    if (!this.holds(entry)) return
    const loss: Loss = { cameraId: entry.cameraId, epoch: entry.head.epoch, seqFrom: entry.seq, seqTo: entry.seq, reason, lostAt: Date.now() }
    this.#contents.lose(loss)
    this.#writeLoss(loss).catch((thrown: unknown) => this.#log.error({ err: thrown }, 'loss not written'))
    this.#log.warn({ cameraId: loss.cameraId, epoch: loss.epoch, seq: loss.seqFrom, reason }, 'frame lost')
  }

  async #writeLoss(loss: Loss): Promise<void> {
    this.#unwritten.add(loss)
    await this.#write({ kind: 'lost', head: loss })
    this.#unwritten.delete(loss)
  }

  /** `repairs`: cuts torn tails off; otherwise the folder stays as it is. Returns the losses that nobody knew of. */
  #recover(repairs: boolean): Loss[] {
    const { folder } = this.#settings
    const segments = readdirSync(folder)
      .filter((name) => /^\d{8}\.log$/.test(name))
      .sort()
    const replay = new Replay()
    segments.forEach((name, at) => {
      const segment = Number.parseInt(name, 10)
      const path = join(folder, name)
      const file = readWhatThereIs(path, this.#log)
      // what a power loss may have torn lies in the last one; a bit that flips elsewhere is found when the frame goes out
      const isLast = at === segments.length - 1
      const { records, broken, intactUntil } = scanSegment(file, isLast ? (kind, head) => digestIn(recordFrom(kind, head)) : undefined)
      if (intactUntil < file.length && repairs) {
        this.#log.warn({ segment: name, cut: file.length - intactUntil, isLast }, 'torn tail cut off')
        cutFile(path, intactUntil)
      }
      for (const { at: where, end } of broken) this.#log.error({ segment: name, where, bytes: end - where }, 'record broken, skipped')
      replay.contents.grow(segment, intactUntil)
      for (const { kind, head, bodyAt, bodyLength } of records) {
        const record = recordFrom(kind, head)
        if (record) replay.apply(segment, record, bodyAt, bodyLength)
        else this.#log.warn({ kind, segment }, 'record of an unknown kind skipped')
      }
      this.#segment = segment
    })
    const damaged = replay.finish()
    this.#contents = replay.contents
    return damaged
  }

  #syncLast(): void {
    if (this.#segment === 0) return
    const file = openSync(join(this.#settings.folder, segmentName(this.#segment)), 'r+')
    try {
      fsyncSync(file)
    } finally {
      closeSync(file)
    }
  }

  async #startSegment(): Promise<void> {
    const { folder } = this.#settings
    const segment = this.#segment + 1
    const path = join(folder, segmentName(segment))
    const header = encodeRecord(kinds.opened, this.#contents.opening(this.#unwritten), new Uint8Array())
    const file = this.#disk.create(path)
    try {
      await this.#disk.write(file, header)
      await this.#disk.sync(file)
      this.#disk.syncFolder(folder)
    } catch (thrown) {
      closeSync(file)
      this.#disk.remove(path)
      throw thrown
    }
    if (this.#file >= 0) closeSync(this.#file)
    this.#segment = segment
    this.#file = file
    this.#size = sizeOf(header)
    this.#contents.grow(segment, this.#size)
    this.#dropOldSegments()
  }

  /** S5. */
  #dropOldSegments(): void {
    for (;;) {
      const { oldest } = this.#contents
      // a frame that was given up is not there any more once its segment is gone: its loss must be
      if (!oldest || oldest.segment === this.#segment || oldest.frames > 0 || this.#unwritten.size > 0) return
      this.#contents.drop(oldest.segment)
      this.#disk.remove(join(this.#settings.folder, segmentName(oldest.segment)))
      // so that a power loss cannot bring it back without what came after it
      this.#disk.syncFolder(this.#settings.folder)
    }
  }

  /** S7. */
  #shrink(limit: Bytes, free: Bytes): void {
    if (this.#moving || this.#isClosing || this.#contents.logBytes <= limit) return
    this.#moving = this.#emptyOldest(limit, free)
      .catch((thrown: unknown) => this.#log.error({ err: thrown }, 'old segments not emptied'))
      .finally(() => {
        this.#moving = undefined
      })
  }

  async #emptyOldest(limit: Bytes, free: Bytes): Promise<void> {
    for (;;) {
      this.#dropOldSegments()
      const segment = this.#contents.oldest?.segment
      if (this.#contents.logBytes <= limit || segment === this.#segment || this.#isClosing || this.#broken) return
      const frames = [...this.entries].filter((entry) => entry.segment === segment)
      const bytes = frames.reduce((sum, entry) => sum + heldBytes(entry), 0)
      if (bytes > this.#moveCredit || bytes + movedAtOnce > free) return
      this.#moveCredit -= bytes
      await this.#move(frames)
      // a loss or an acknowledgement may be on its way to the log
      await this.#flushing
    }
  }

  async #move(frames: readonly Entry[]): Promise<void> {
    /** Without bytes: those that S3 has. */
    let batch: { readonly entry: Entry; readonly bytes: Buffer | undefined }[] = []
    const write = async (): Promise<void> => {
      const staying = batch.filter(({ entry }) => this.holds(entry) && !entry.leaving)
      batch = []
      const announced = this.#write({ kind: 'moving', head: staying.map(({ entry }) => keyOf(entry)) })
      const moved = staying.map(async ({ entry, bytes }) => {
        const { head: frame, born, bornAt, stored } = entry
        const place = await this.#write({ kind: 'moved', head: { frame, born, bornAt, ...stored, ...(bytes ? {} : { bytes: entry.bytes }) } }, bytes)
        this.#contents.move(entry, place.segment, place.bodyAt, bytes === undefined)
      })
      await Promise.all([announced, ...moved])
    }
    for (const entry of frames) {
      if (!this.holds(entry) || this.#isClosing) continue
      if (entry.stored) {
        batch.push({ entry, bytes: undefined })
        continue
      }
      const bytes = await this.read(entry).catch((thrown: unknown) => {
        if (!isDamage(thrown)) throw thrown
      })
      // one bad sector would hold its segment, and all behind it, for good
      if (bytes) batch.push({ entry, bytes })
      else if (!entry.leaving) this.#lose(entry, 'unreadable')
      if (batch.reduce((sum, { bytes: own }) => sum + (own?.length ?? 0), 0) >= movedAtOnce) await write()
    }
    if (batch.length > 0) await write()
  }

  /** `delay`: how long it may wait for others to be written with. */
  #write(record: SpoolRecord, body: Uint8Array = new Uint8Array(), delay: Ms = 0): Promise<{ readonly segment: number; readonly bodyAt: Bytes }> {
    return new Promise((resolve, reject) => {
      if (this.#broken) {
        reject(new Fault('SPOOL_BROKEN', 'The spool takes nothing more since a write failed', {}, this.#broken))
        return
      }
      this.#queue.push({
        kind: record.kind,
        parts: encodeRecord(kinds[record.kind], record.head, body, digestIn(record) !== ''),
        done: (segment, bodyAt) => resolve({ segment, bodyAt }),
        failed: reject,
      })
      if (delay === 0) this.#flushNow()
      else this.#later ??= setTimeout(() => this.#flushNow(), delay)
    })
  }

  #flushNow(): void {
    clearTimeout(this.#later)
    this.#later = undefined
    if (this.#queue.length === 0) return
    this.#flushing ??= this.#flush().finally(() => {
      this.#flushing = undefined
    })
  }

  /** As much of what waits as goes out at once; on a full disk what was said about frames first, which is small and lets segments go. */
  #nextBatch(): readonly Waiting[] {
    if (this.#isFull && this.#queue.some(isWord)) {
      const words = this.#queue.filter(isWord)
      this.#queue = this.#queue.filter((waiting) => !isWord(waiting))
      return words
    }
    let bytes: Bytes = 0
    const end = this.#queue.findIndex(({ parts }, at) => {
      bytes += sizeOf(parts)
      return at > 0 && bytes > commitBytes
    })
    return this.#queue.splice(0, end < 0 ? this.#queue.length : end)
  }

  /** S4: nothing of the batch was promised; what was written of it is taken back, or it throws. */
  async #waitForRoom(batch: readonly Waiting[], thrown: unknown): Promise<void> {
    this.#disk.cut(this.#file, this.#size)
    if (!this.#isFull) this.#log.error({ err: thrown }, 'the disk of the spool is full; what is delivered stays in it until there is room to note that')
    this.#isFull = true
    const full = new Fault('SPOOL_FULL', 'The disk of the spool is full', {}, thrown)
    const all = [...batch, ...this.#queue]
    this.#queue = all.filter(isWord)
    for (const waiting of all) if (!isWord(waiting)) waiting.failed(full)
    await sleep(fullPause, undefined, { signal: this.#settings.signal }).catch(() => {})
  }

  /** Group commit: what waits goes out in one writev and one fdatasync. */
  async #flush(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#nextBatch()
      let isWritten = false
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
        isWritten = true
        await this.#disk.sync(this.#file)
        this.#isFull = false
      } catch (thrown) {
        const mayWait = !isWritten && isDiskFull(thrown) && !this.#isClosing && !this.#settings.signal?.aborted
        const failure = mayWait ? await this.#waitForRoom(batch, thrown).catch(toError) : thrown
        if (failure === undefined) continue
        this.#broken = toError(failure)
        this.#log.error({ err: failure }, 'spool write failed')
        for (const waiting of [...batch, ...this.#queue]) waiting.failed(new Fault('SPOOL_BROKEN', `The spool could not be written: ${this.#broken.message}`, {}, failure))
        this.#queue = []
        return
      }
      for (const { parts, done } of batch) {
        const length = sizeOf(parts)
        done(this.#segment, this.#size + length - (parts[1]?.length ?? 0))
        this.#size += length
        this.#contents.grow(this.#segment, length)
      }
    }
  }
}
