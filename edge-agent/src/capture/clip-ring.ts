/**
 * The last seconds of a stream as it came, kept in memory and never decoded, so that a clip begins before the event that
 * asked for it. Fed with an MPEG transport stream; cut where a decoder can begin. `now` is a clock that nobody sets
 * (`performance.now()`).
 */
import type { Bytes, Ms } from '@frameloop/kit/units'
import type { Clips } from '../config.ts'

const packetBytes = 188
const sync = 0x47

/** Whether a decoder can begin with this packet (ISO/IEC 13818-1, 2.4.3.4: `random_access_indicator`). */
function canBegin(packet: Uint8Array): boolean {
  const hasAdaptation = ((packet[3] as number) & 0x20) !== 0
  return hasAdaptation && (packet[4] as number) > 0 && ((packet[5] as number) & 0x40) !== 0
}

/** The program association table has PID 0: ffmpeg writes it, and the map behind it, before each picture a decoder can begin with. */
const isTable = (packet: Uint8Array): boolean => ((packet[1] as number) & 0x1f) === 0 && packet[2] === 0

/** Pictures that need none before them. */
interface Group {
  readonly since: Ms
  readonly parts: Uint8Array[]
  bytes: Bytes
}

export interface Clip {
  /** How long ago its first picture came. */
  readonly age: Ms
  readonly transportStream: Buffer
}

export class ClipRing {
  readonly #settings: Clips
  #groups: Group[] = []
  /** The beginning of a packet whose rest has not come yet. */
  #rest: Uint8Array = new Uint8Array()
  /** Packets since the last table: they belong to what comes next. */
  #head: Uint8Array[] = []
  /** Until when it is recorded, and how long that may become. */
  #until: Ms | undefined
  #latest: Ms = 0

  constructor(settings: Clips) {
    this.#settings = settings
  }

  get bytes(): Bytes {
    return this.#groups.reduce((sum, group) => sum + group.bytes, 0)
  }

  get isRecording(): boolean {
    return this.#until !== undefined
  }

  push(chunk: Uint8Array, now: Ms): void {
    const bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    let at = 0
    for (; at + packetBytes <= bytes.length; at += packetBytes) {
      const packet = bytes.subarray(at, at + packetBytes)
      // no transport stream: nothing can be cut from it
      if (packet[0] !== sync) {
        this.clear()
        return
      }
      this.#packet(packet, now)
    }
    this.#rest = bytes.subarray(at)
    if (this.#until === undefined) this.#forget(now - this.#settings.before * 1000)
  }

  #packet(packet: Uint8Array, now: Ms): void {
    if (isTable(packet)) {
      this.#put(this.#head)
      this.#head = [packet]
      return
    }
    if (canBegin(packet)) {
      this.#groups.push({ since: now, parts: [], bytes: 0 })
      this.#put([...this.#head, packet])
      this.#head = []
      return
    }
    if (this.#head.length > 0 && this.#head.length < 3) this.#head.push(packet)
    else {
      this.#put([...this.#head, packet])
      this.#head = []
    }
  }

  /** Before the first picture a decoder can begin with nothing is kept. */
  #put(packets: readonly Uint8Array[]): void {
    const group = this.#groups.at(-1)
    if (!group) return
    group.parts.push(...packets)
    group.bytes += packets.length * packetBytes
  }

  /** Whole groups that ended before `since`; and the last one too when it grows beyond any clip: some cameras begin anew only when asked. */
  #forget(since: Ms): void {
    while (this.#groups.length > 1 && (this.#groups[1]?.since ?? 0) <= since) this.#groups.shift()
    if (this.#groups.length === 1 && (this.#groups[0]?.since ?? 0) < since - this.#settings.longest * 1000) this.#groups = []
  }

  /** Something happens: what came before it is kept, and what comes until `after` later, or `longest` at most. Until when; undefined where there is no stream. */
  event(now: Ms, after: Ms = this.#settings.after * 1000): Ms | undefined {
    if (this.#groups.length === 0) return undefined
    const { before, longest } = this.#settings
    if (this.#until === undefined) {
      this.#forget(now - before * 1000)
      if (this.#groups.length === 0) return undefined
      // of a group that began long ago, because there are few pictures to begin with, only what was asked for counts
      this.#latest = Math.max(this.#groups[0]?.since ?? now, now - before * 1000) + longest * 1000
    }
    this.#until = Math.min(Math.max(this.#until ?? 0, now + after), this.#latest)
    return this.#until
  }

  /** The clip, once its time has come, or `now` already because the stream has ended. */
  take(now: Ms, hasEnded = false): Clip | undefined {
    if (this.#until === undefined || (now < this.#until && !hasEnded)) return undefined
    this.#until = undefined
    const groups = this.#groups
    // the next clip may need what this one ends with
    this.#groups = groups.slice(-1).map(({ since, parts, bytes }) => ({ since, parts: [...parts], bytes }))
    return { age: now - (groups[0]?.since ?? now), transportStream: Buffer.concat(groups.flatMap(({ parts }) => parts)) }
  }

  /** Another connection: what it brings does not continue what was there. */
  clear(): void {
    this.#groups = []
    this.#head = []
    this.#rest = new Uint8Array()
    this.#until = undefined
  }
}
