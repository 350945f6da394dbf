/**
 * Power loss at every moment: what the spool writes and syncs is recorded; then, for every cut in that trace, a disk is made
 * as it may look afterwards (what was synced is there; what was written later is there, missing or torn), and opened.
 */
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sha256Hex } from '@frameloop/kit/digest'
import { openLog } from '@frameloop/kit/log'
import { randomOf } from '@frameloop/kit/random'
import { afterEach, expect, test } from 'vitest'
import type { Entry, FrameHead } from './contents.ts'
import { type Disk, realDisk } from './disk.ts'
import { Spool } from './spool.ts'

const log = openLog('test', 'silent')
// in memory where there is such a place: the power that is lost here is not that of this machine
const root = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'frameloop-power-'))
afterEach(() => rmSync(root, { recursive: true, force: true }))

type Operation =
  | { readonly kind: 'made' | 'removed' | 'synced folder'; readonly name: string }
  | { readonly kind: 'wrote'; readonly name: string; readonly bytes: Buffer }
  | { readonly kind: 'synced'; readonly name: string }
  | { readonly kind: 'cut'; readonly name: string; readonly length: number }
  /** Somebody was told that this is durable. */
  | { readonly kind: 'promised'; readonly what: string }

/** The real disk, and a note of everything that is done to it; `fill` makes it full for the next write. */
function recording(trace: Operation[]): Disk & { fill(): void } {
  let isFull = false
  const names = new Map<number, string>()
  const nameOf = (path: string): string => path.split('/').at(-1) ?? ''
  return {
    ...realDisk,
    create(path) {
      const file = realDisk.create(path)
      names.set(file, nameOf(path))
      trace.push({ kind: 'made', name: nameOf(path) })
      return file
    },
    fill: () => {
      isFull = true
    },
    async write(file, parts) {
      const bytes = Buffer.concat(parts)
      const taken = isFull ? bytes.subarray(0, bytes.length >> 1) : bytes
      await realDisk.write(file, [taken])
      trace.push({ kind: 'wrote', name: names.get(file) ?? '', bytes: taken })
      if (!isFull) return
      isFull = false
      throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' })
    },
    cut(file, length) {
      realDisk.cut(file, length)
      trace.push({ kind: 'cut', name: names.get(file) ?? '', length })
    },
    async sync(file) {
      await realDisk.sync(file)
      trace.push({ kind: 'synced', name: names.get(file) ?? '' })
    },
    syncFolder(path) {
      realDisk.syncFolder(path)
      trace.push({ kind: 'synced folder', name: '' })
    },
    remove(path) {
      realDisk.remove(path)
      trace.push({ kind: 'removed', name: nameOf(path) })
    },
  }
}

/** A disk as it may be after the power went out behind `trace`: `keeps` says how much of what was not synced has reached it. */
function diskAfter(folder: string, trace: readonly Operation[], keeps: (unsynced: number) => number): void {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  const files = new Map<string, { durable: Buffer; pending: Buffer[]; isNamed: boolean }>()
  for (const operation of trace) {
    if (operation.kind === 'made') files.set(operation.name, { durable: Buffer.alloc(0), pending: [], isNamed: false })
    else if (operation.kind === 'wrote') files.get(operation.name)?.pending.push(operation.bytes)
    else if (operation.kind === 'cut') {
      const file = files.get(operation.name)
      if (file) file.pending = [Buffer.concat(file.pending).subarray(0, operation.length - file.durable.length)]
    } else if (operation.kind === 'synced') {
      const file = files.get(operation.name)
      if (file) {
        file.durable = Buffer.concat([file.durable, ...file.pending])
        file.pending = []
      }
    } else if (operation.kind === 'synced folder') for (const file of files.values()) file.isNamed = true
    // a removal that was not synced may be undone by the power loss: the harder case is the file that is still there
    else if (operation.kind === 'removed') continue
  }
  for (const [name, { durable, pending, isNamed }] of files) {
    // without a sync of the folder the file may not be there at all
    if (!isNamed && keeps(1) === 0) continue
    const rest = Buffer.concat(pending)
    writeFileSync(join(folder, name), durable)
    appendFileSync(join(folder, name), rest.subarray(0, keeps(rest.length)))
  }
}

const body = (seq: number): Buffer => Buffer.alloc(700, seq)
// the digests of even ones are known: both ways of guarding a body are met
const aHead = (seq: number): FrameHead => ({
  ...{ cameraId: 'door', epoch: 'e', seq, kind: 'image', extension: 'jpg', capturedAt: seq, mediaOffsetUs: null, width: 1, height: 1, sourceName: '', traceparent: '' },
  sha256: seq % 2 === 0 ? sha256Hex(body(seq)) : '',
})

test('S1, S2, S3: at every cut of what was written and synced, nothing promised is lost and nothing delivered comes back unacknowledged', async () => {
  const trace: Operation[] = []
  const folder = join(root, 'spool')
  const disk = recording(trace)
  // small: some frames are given up, and others are moved
  const sizes = { capacity: 9_000, segmentBytes: 2_000 }
  const spool = await Spool.open({ folder, ...sizes, disk }, log)
  const random = randomOf(11)
  const inStore = new Set<number>()
  const unannounced: Entry[] = []
  for (let seq = 1; seq <= 48; seq += 1) {
    if (seq % 16 === 9) {
      disk.fill()
      await expect(spool.append(aHead(seq), body(seq))).rejects.toMatchObject({ code: 'SPOOL_FULL' })
    }
    await spool.append(aHead(seq), body(seq))
    trace.push({ kind: 'promised', what: `captured ${seq}` })
    if (random() < 0.5) {
      const entry = [...spool.entries][random() < 0.5 ? 0 : 3]
      if (entry && !entry.stored) {
        inStore.add(entry.seq)
        await spool.markStored(entry, 'v')
        trace.push({ kind: 'promised', what: `stored ${entry.seq}` })
        unannounced.push(entry)
      }
    }
    // Kafka is away now and then: what S3 has is moved meanwhile
    while (unannounced.length > 0 && seq % 12 < 6) {
      const [entry] = unannounced.splice(0, 1) as [Entry]
      await spool.markAnnounced([entry])
      trace.push({ kind: 'promised', what: `announced ${entry.seq}` })
    }
    if (random() < 0.1) {
      const told = spool.losses()
      // announced already; whether the log knows it is all one
      for (const { seqFrom, seqTo } of told) for (let lost = seqFrom; lost <= seqTo; lost += 1) trace.push({ kind: 'promised', what: `told ${lost}` })
      await spool.markTold(told)
    }
  }
  await spool.close()
  expect(trace.some((operation) => operation.kind === 'wrote' && operation.bytes.includes('"born"'))).toBe(true)
  expect(trace.filter(({ kind }) => kind === 'cut').length).toBe(3)
  expect(readdirSync(folder).length).toBeGreaterThan(3)

  const after = join(root, 'after')
  let [cuts, emptied] = [0, 0]
  for (let cut = 0; cut <= trace.length; cut += 1) {
    const done = trace.slice(0, cut)
    const promised = new Set(done.flatMap((operation) => (operation.kind === 'promised' ? [operation.what] : [])))
    for (const keeps of [() => 0, (unsynced: number) => unsynced, (unsynced: number) => Math.floor(unsynced * random())]) {
      diskAfter(after, done, keeps)
      const again = await Spool.open({ folder: after, ...sizes }, log)
      const there = new Map([...again.entries].map((entry) => [entry.seq, entry]))
      const lost = again.losses()
      for (let seq = 1; seq <= 48; seq += 1) {
        if (!promised.has(`captured ${seq}`)) continue
        if (promised.has(`told ${seq}`) || lost.some(({ seqFrom, seqTo }) => seqFrom <= seq && seq <= seqTo)) {
          expect(there.get(seq), `cut ${cut}: ${seq} was lost and waits`).toBeUndefined()
          continue
        }
        const [isStored, isAnnounced] = [promised.has(`stored ${seq}`), promised.has(`announced ${seq}`)]
        const entry = there.get(seq)
        if (isAnnounced) expect(entry, `cut ${cut}: ${seq} was delivered and waits again`).toBeUndefined()
        // between the two acknowledgements it may be either: announcing twice is harmless, not at all is not
        else if (!isStored || entry) expect(entry, `cut ${cut}: ${seq} was captured and is gone`).toBeDefined()
        // bytes are left out only of what S3 has
        if (entry?.isEmpty) emptied += 1
        if (entry?.isEmpty) expect(inStore.has(seq) && entry.stored !== undefined, `cut ${cut}: ${seq} has no bytes`).toBe(true)
        else if (entry) expect((await again.read(entry)).equals(body(seq)), `cut ${cut}: ${seq} has other bytes`).toBe(true)
        if (entry && isStored) expect(entry.stored).toBeDefined()
      }
      for (const { unaccounted } of again.account) expect(unaccounted, `cut ${cut}`).toBe(0)
      await again.close()
      cuts += 1
    }
  }
  expect(cuts).toBeGreaterThan(300)
  expect(emptied).toBeGreaterThan(0)
}, 240_000)

test('S4: a disk that fails once is never called fine again, and nothing that failed was promised', async () => {
  for (const failing of ['write', 'sync'] as const) {
    const folder = join(root, failing)
    let left = 3
    const fail = async (): Promise<void> => {
      left -= 1
      if (left === 0) throw Object.assign(new Error('EIO: i/o error'), { code: 'EIO' })
    }
    const disk: Disk = {
      ...realDisk,
      ...(failing === 'write'
        ? {
            write: async (file: number, parts: readonly Buffer[]) => {
              await fail()
              await realDisk.write(file, parts)
            },
          }
        : {
            sync: async (file: number) => {
              await fail()
              await realDisk.sync(file)
            },
          }),
    }
    const spool = await Spool.open({ folder, capacity: 30_000, segmentBytes: 3_000, disk }, log)
    await spool.append(aHead(1), body(1))
    await expect(spool.append(aHead(2), body(2))).rejects.toMatchObject({ code: 'SPOOL_BROKEN' })
    // the disk would work again: whoever retried a sync would be told a lie
    await expect(spool.append(aHead(2), body(2))).rejects.toMatchObject({ code: 'SPOOL_BROKEN' })
    await spool.close()
    const again = await Spool.open({ folder, capacity: 30_000, segmentBytes: 3_000 }, log)
    expect([...again.entries].map(({ seq }) => seq)).toContain(1)
    await again.close()
  }
})
