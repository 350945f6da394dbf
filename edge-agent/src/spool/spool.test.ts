import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sha256Hex } from '@frameloop/kit/digest'
import { openLog } from '@frameloop/kit/log'
import { randomOf } from '@frameloop/kit/random'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { exportFrames } from '../spool-commands.ts'
import { chooseEvictions } from './budget.ts'
import type { Entry, FrameHead } from './contents.ts'
import { type Disk, realDisk } from './disk.ts'
import { encodeRecord } from './log-file.ts'
import { Spool } from './spool.ts'

const log = openLog('test', 'silent')
let folder = ''
beforeEach(() => {
  // in memory where there is such a place: what is lost here is lost by those who write, not by the disk of this machine
  folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'frameloop-spool-'))
})
afterEach(() => rmSync(folder, { recursive: true, force: true }))

const open = (capacity = 1_000_000, at = folder, disk = realDisk): Promise<Spool> => Spool.open({ folder: at, capacity, segmentBytes: 4_000, disk }, log)
const aHead = (seq: number, cameraId = 'door'): FrameHead => ({
  cameraId,
  epoch: 'e',
  seq,
  kind: 'image',
  extension: 'jpg',
  capturedAt: 1_000 + seq,
  mediaOffsetUs: null,
  width: 1,
  height: 1,
  sourceName: '',
  sha256: '',
  traceparent: '',
})
const bytes = (seq: number): Buffer => Buffer.alloc(1_000, seq)
const seqs = (spool: Spool): number[] => [...spool.entries].map(({ seq }) => seq)

test('S1, S2: what was acknowledged is there after a crash, with its bytes', async () => {
  const spool = await open()
  for (let seq = 1; seq <= 5; seq += 1) await spool.append(aHead(seq), bytes(seq))
  // no close: the process is gone
  rmSync(join(folder, 'lock'))
  const again = await open()
  expect(seqs(again)).toEqual([1, 2, 3, 4, 5])
  for (const entry of again.entries) expect((await again.read(entry)).equals(bytes(entry.seq))).toBe(true)
  await again.close()
})

test('S2: a write torn at any byte loses nothing that was acknowledged before it', async () => {
  const spool = await open()
  await spool.append(aHead(1), bytes(1))
  const [segment] = readdirSync(folder).filter((name) => name.endsWith('.log'))
  const file = join(folder, segment ?? '')
  const first = readFileSync(file).length
  await spool.append(aHead(2), bytes(2))
  const whole = readFileSync(file)
  await spool.close()
  for (let cut = first; cut < whole.length; cut += 37) {
    for (const name of readdirSync(folder)) rmSync(join(folder, name))
    writeFileSync(file, whole)
    truncateSync(file, cut)
    const again = await open()
    expect(seqs(again), `cut at ${cut}`).toEqual([1])
    await again.close()
  }
})

test('S2: a flipped bit costs one record and the rest is delivered', async () => {
  const spool = await open()
  for (let seq = 1; seq <= 3; seq += 1) await spool.append(aHead(seq), bytes(seq))
  const [segment] = readdirSync(folder).filter((name) => name.endsWith('.log'))
  const file = join(folder, segment ?? '')
  await spool.close()
  const content = readFileSync(file)
  const at = content.indexOf(bytes(2).subarray(0, 100)) + 50
  content[at] = (content[at] ?? 0) ^ 1
  writeFileSync(file, content)
  const again = await open()
  expect(seqs(again)).toEqual([1, 3])
  await again.close()
})

test('S2: a bit flipped in a frame whose digest is known is found at the start where power loss may have torn it, and by verify elsewhere', async () => {
  const head = (seq: number): FrameHead => ({ ...aHead(seq), sha256: sha256Hex(bytes(seq)) })
  const spool = await open()
  for (let seq = 1; seq <= 7; seq += 1) await spool.append(head(seq), bytes(seq))
  await spool.close()
  const flip = (seq: number): void => {
    const file = readdirSync(folder)
      .map((name) => join(folder, name))
      .find((path) => readFileSync(path).includes(bytes(seq).subarray(0, 100)))
    const content = readFileSync(file ?? '')
    const at = content.indexOf(bytes(seq).subarray(0, 100)) + 50
    content[at] = (content[at] ?? 0) ^ 1
    writeFileSync(file ?? '', content)
  }
  flip(2)
  flip(5)
  const again = await open()
  expect(seqs(again)).toEqual([1, 2, 3, 4, 6, 7])
  expect(again.losses()).toMatchObject([{ seqFrom: 5, seqTo: 5, reason: 'unreadable' }])
  expect((await again.damaged()).map(({ seq }) => seq)).toEqual([2])
  await again.close()
})

test('S3, S5: a frame leaves only after both acknowledgements, and then its segment goes too', async () => {
  const spool = await open()
  const entries = []
  for (let seq = 1; seq <= 12; seq += 1) entries.push(await spool.append(aHead(seq), bytes(seq)))
  const before = readdirSync(folder).length
  for (const entry of entries) await spool.markStored(entry, 'v')
  expect(seqs(spool)).toHaveLength(12)
  await spool.markAnnounced(entries)
  expect(seqs(spool)).toEqual([])
  expect(readdirSync(folder).length).toBeLessThan(before)
  await spool.close()
  const again = await open()
  expect(seqs(again)).toEqual([])
  expect(again.counters).toMatchObject([{ cameraId: 'door', epoch: 'e', highestSeq: 12 }])
  await again.close()
})

test('what was stored but not announced is announced after a restart, without a second upload', async () => {
  const spool = await open()
  const entry = await spool.append(aHead(1), bytes(1))
  await spool.markStored(entry, 'version-7')
  await spool.close()
  const again = await open()
  expect([...again.entries][0]?.stored).toEqual({ versionId: 'version-7' })
  await again.close()
})

test('while Kafka is away what S3 has takes no more room than its record: new frames find room, and all are announced after a restart', async () => {
  const large = (seq: number): Buffer => Buffer.alloc(10_000, seq)
  const spool = await open(400_000)
  for (let seq = 1; seq <= 80; seq += 1) {
    const entry = await spool.append(aHead(seq), large(seq))
    await spool.markStored(entry, `v${seq}`)
  }
  expect(spool.losses()).toEqual([])
  // bytes are left behind with the segments they came in
  expect(spool.size.logBytes).toBeLessThan(700_000)
  await spool.close()
  const again = await open(400_000)
  expect(seqs(again)).toEqual(Array.from({ length: 80 }, (_, at) => at + 1))
  expect([...again.entries].map(({ stored, bytes: length }) => [stored?.versionId, length])).toEqual(Array.from({ length: 80 }, (_, at) => [`v${at + 1}`, 10_000]))
  expect(await again.damaged()).toEqual([])
  expect(await exportFrames(again, join(folder, 'out'), undefined)).toMatchObject({ gone: 0 })
  await again.markAnnounced([...again.entries])
  expect(again.account).toMatchObject([{ waiting: 0, delivered: 80, lost: 0, unaccounted: 0 }])
  await again.close()
})

test('a second agent on the same spool is refused', async () => {
  const spool = await open()
  // the lock names a living process that is not the one that asks
  const ticks = readFileSync('/proc/1/stat', 'utf8').split(') ')[1]?.split(' ')[19]
  writeFileSync(join(folder, 'lock'), `1 ${ticks}`)
  await expect(open()).rejects.toMatchObject({ code: 'SPOOL_LOCKED' })
  await spool.close()
})

test('a full spool gives up its oldest frames, tells of each, and keeps the newest of every camera', async () => {
  const spool = await open(5_500)
  await spool.append(aHead(1, 'yard'), bytes(1))
  for (let seq = 1; seq <= 8; seq += 1) await spool.append(aHead(seq), bytes(seq))
  expect([...spool.entries].map(({ cameraId, seq }) => `${cameraId} ${seq}`)).toEqual(['yard 1', 'door 4', 'door 6', 'door 7', 'door 8'])
  expect(spool.losses()).toMatchObject([
    { seqFrom: 1, seqTo: 3, reason: 'evicted' },
    { seqFrom: 5, seqTo: 5, reason: 'evicted' },
  ])
  expect(spool.account).toMatchObject([
    { cameraId: 'yard', highestSeq: 1, delivered: 0, lost: 0, waiting: 1, unaccounted: 0 },
    { cameraId: 'door', highestSeq: 8, delivered: 0, lost: 4, waiting: 4, unaccounted: 0 },
  ])
  await spool.close()
})

/** The disk as a kill at this moment leaves it, while the one that was killed may go on writing elsewhere. */
function killed(life: number): string {
  const left = `${folder}/life-${life}`
  cpSync(life === 0 ? folder : `${folder}/life-${life - 1}`, left, { recursive: true, filter: (path) => !/lock$|life-\d+$/.test(path) || path.endsWith(`life-${life - 1}`) })
  return left
}

test('captured is delivered, waiting or lost, whenever the agent is killed and however often', async () => {
  const random = randomOf(1)
  let at = join(folder, 'life-0')
  let seq = 0
  let spool = await open(8_000, at)
  for (let life = 1; life <= 12; life += 1) {
    for (let step = 0; step < 40; step += 1) {
      seq += 1
      await spool.append(aHead(seq), bytes(seq))
      const oldest = [...spool.entries][0]
      if (oldest && random() < 0.3) {
        await spool.markStored(oldest, '')
        await spool.markAnnounced([oldest])
      }
      if (life % 3 === 0 && random() < 0.3) await spool.markTold(spool.losses())
    }
    expect(spool.account).toMatchObject([{ highestSeq: seq, unaccounted: 0 }])
    const looked = Spool.inspect(at, log)
    expect(looked.account).toEqual(spool.account)
    await expect(looked.append(aHead(seq + 1), bytes(1))).rejects.toMatchObject({ code: 'SPOOL_BROKEN' })
    const before = spool.losses()
    at = killed(life)
    spool = await open(8_000, at)
    expect(spool.account).toMatchObject([{ highestSeq: seq, unaccounted: 0 }])
    expect(spool.losses().map(({ seqFrom, seqTo }) => [seqFrom, seqTo])).toEqual(before.map(({ seqFrom, seqTo }) => [seqFrom, seqTo]))
  }
  await spool.close()
})

test('S7: a long outage with a full spool takes a quarter more than what waits and a few segments, and what waits keeps bytes and order', async () => {
  const large = (seq: number): Buffer => Buffer.alloc(20_000, seq)
  const openLarge = (): Promise<Spool> => Spool.open({ folder, capacity: 3_200_000, segmentBytes: 50_000 }, log)
  const spool = await openLarge()
  let most = 0
  for (let seq = 1; seq <= 1_000; seq += 1) {
    for (const camera of ['door', 'yard']) await spool.append({ ...aHead(seq, camera), isEvent: seq % 50 === 0 }, large(seq))
    most = Math.max(most, spool.size.logBytes)
  }
  // what is being moved is there twice for a moment
  // one segment before any is emptied, one before frames wait for it, and its copy; each may be a frame larger than it should
  expect(most).toBeLessThan(3_200_000 * 1.25 + 3 * (50_000 + large(0).length))
  expect(spool.size.bytes).toBeGreaterThan(3_150_000)
  const [waiting, losses] = [seqs(spool), spool.losses()]
  // those of the first hours too, however often the segment they are in was emptied
  expect(waiting).toContain(50)
  await spool.close()
  const again = await openLarge()
  expect(seqs(again)).toEqual(waiting)
  expect(again.losses()).toEqual(losses.map((loss) => ({ ...loss, lostAt: expect.any(Number) as number })))
  for (const entry of again.entries) expect((await again.read(entry)).equals(large(entry.seq))).toBe(true)
  for (const { unaccounted } of again.account) expect(unaccounted).toBe(0)
  await again.close()
})

/** Segments whose frames were moved stay, as when the process is killed before each is removed. */
const keepsAll: Disk = { ...realDisk, remove: () => undefined }

/** Flips a bit of a frame's bytes in the files named; the frame is in these. */
function flip(seq: number, files: readonly string[]): void {
  for (const file of files) {
    const content = readFileSync(file)
    const at = content.indexOf(bytes(seq).subarray(0, 100)) + 50
    content[at] = (content[at] ?? 0) ^ 1
    writeFileSync(file, content)
  }
}

const filesWith = (seq: number): string[] => {
  const paths = readdirSync(folder).map((name) => join(folder, name))
  return paths.sort().filter((path) => readFileSync(path).includes(bytes(seq).subarray(0, 100)))
}

test.each([
  ['once', realDisk],
  ['and its segments are still there', keepsAll],
])('S2, S7: a bit flipped in every copy of a frame that was moved, %s, costs that frame, and it is told as lost', async (_, disk) => {
  const spool = await open(20_000, folder, disk)
  for (let seq = 1; seq <= 100; seq += 1) await spool.append({ ...aHead(seq), isEvent: seq <= 5 }, bytes(seq))
  await spool.close()
  flip(3, filesWith(3))
  for (let start = 1; start <= 2; start += 1) {
    const again = await open(20_000, folder, disk)
    expect(seqs(again).slice(0, 4)).toEqual([1, 2, 4, 5])
    expect(again.losses().filter(({ reason }) => reason === 'unreadable')).toMatchObject([{ seqFrom: 3, seqTo: 3 }])
    expect(again.account).toMatchObject([{ highestSeq: 100, unaccounted: 0 }])
    await again.close()
  }
})

test('S2, S7: a bit flipped in one copy of a frame that is there twice costs nothing, not even its place', async () => {
  const spool = await open(20_000, folder, keepsAll)
  for (let seq = 1; seq <= 100; seq += 1) await spool.append({ ...aHead(seq), isEvent: seq <= 5 }, bytes(seq))
  await spool.close()
  const copies = filesWith(3)
  expect(copies.length).toBeGreaterThan(1)
  for (const [at, file] of copies.entries()) {
    const intact = readFileSync(file)
    flip(3, [file])
    const again = await open(20_000, folder, keepsAll)
    expect(seqs(again).slice(0, 5), `copy ${at} of ${copies.length}`).toEqual([1, 2, 3, 4, 5])
    const [third] = [...again.entries].filter(({ seq }) => seq === 3)
    if (third) expect((await again.read(third)).equals(bytes(3))).toBe(true)
    expect(again.losses().filter(({ reason }) => reason === 'unreadable')).toEqual([])
    expect(again.account).toMatchObject([{ highestSeq: 100, unaccounted: 0 }])
    await again.close()
    writeFileSync(file, intact)
  }
})

test('S2: the last frame of a segment, damaged, is told as lost too, once', async () => {
  const spool = await open()
  for (let seq = 1; seq <= 12; seq += 1) await spool.append(aHead(seq), bytes(seq))
  await spool.close()
  const [first] = readdirSync(folder).filter((name) => name.endsWith('.log'))
  truncateSync(join(folder, first ?? ''), readFileSync(join(folder, first ?? '')).length - 10)
  for (let start = 1; start <= 2; start += 1) {
    const again = await open()
    expect(again.losses()).toMatchObject([{ reason: 'unreadable' }])
    expect(again.account).toMatchObject([{ highestSeq: 12, lost: 1, unaccounted: 0 }])
    await again.close()
  }
})

test('who looks at a spool while its agent delivers takes nothing for damaged that has left meanwhile', async () => {
  const spool = await open()
  for (let seq = 1; seq <= 12; seq += 1) await spool.append(aHead(seq), bytes(seq))
  const looked = Spool.inspect(folder, log)
  const leaving = [...spool.entries].slice(0, 6)
  for (const entry of leaving) await spool.markStored(entry, '')
  await spool.markAnnounced(leaving)
  expect(looked.hasGone([...looked.entries][0] as never)).toBe(true)
  expect(await looked.damaged()).toEqual([])
  const copies = join(folder, 'copies')
  const { frames, gone } = await exportFrames(looked, copies, undefined)
  expect(frames + gone).toBe(12)
  expect(gone).toBeGreaterThan(0)
  await spool.close()
})

test('what S3 has already is not given up after a start either, and nothing is for what does not fit all the same', async () => {
  const spool = await open(10_000)
  for (let seq = 1; seq <= 9; seq += 1) await spool.append(aHead(seq), bytes(seq))
  await expect(spool.append(aHead(10), Buffer.alloc(20_000))).rejects.toMatchObject({ code: 'SPOOL_FULL' })
  expect(seqs(spool)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9])
  for (const entry of [...spool.entries].slice(0, 5)) await spool.markStored(entry, 'v')
  await spool.close()
  const again = await open(10_000)
  for (let seq = 10; seq <= 12; seq += 1) await again.append(aHead(seq), bytes(seq))
  expect(seqs(again).slice(0, 5)).toEqual([1, 2, 3, 4, 5])
  expect(again.losses().every(({ seqFrom }) => seqFrom > 5)).toBe(true)
  await again.close()
})

test('the routine goes before events, thinned evenly, and the newest of each camera stays', () => {
  const entries = Array.from({ length: 32 }, (_, at) => ({ cameraId: at % 2 ? 'a' : 'b', seq: at + 1, bytes: 1, isEvent: at >= 8 && at < 12, busy: false }))
  const evicted = chooseEvictions(entries, 32, 16, 32).map(({ seq }) => seq)
  expect(evicted).toEqual([1, 3, 5, 7, 13, 15, 17, 19, 21, 23, 25, 27, 29, 2, 6, 14, 18])
  expect(chooseEvictions(entries, 32, 40, 32).map(({ seq }) => seq)).not.toContain(32)
  // two newest stay, four are events
  const routine = chooseEvictions(entries, 32, 25, 32)
  expect(routine.map(({ isEvent }) => isEvent)).toEqual(Array.from({ length: 26 }, () => false))
  expect(chooseEvictions(entries, 32, 31, 32).at(-1)?.isEvent).toBe(true)
})

test('a disk that is nearly full takes no more, gives nothing up, and keeps what it has', async () => {
  const spool = await Spool.open({ folder, capacity: 1_000_000, segmentBytes: 4_000 }, log)
  await spool.append(aHead(1), bytes(1))
  await spool.close()
  const full = await Spool.open({ folder, capacity: 1_000_000, segmentBytes: 4_000, keepFree: Number.MAX_SAFE_INTEGER }, log)
  await expect(full.append(aHead(2), bytes(2))).rejects.toMatchObject({ code: 'SPOOL_FULL' })
  expect(seqs(full)).toEqual([1])
  expect(full.losses()).toEqual([])
  await full.close()
})

test.each([2, 4])('a disk that others have filled, after %i frames, refuses frames, and what was delivered is noted once there is room', async (before) => {
  let isFull = false
  const disk: Disk = {
    ...realDisk,
    async write(file, parts) {
      // a part of it goes in
      if (isFull) await realDisk.write(file, [(parts[0] as Buffer).subarray(0, 7)])
      if (isFull) throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' })
      await realDisk.write(file, parts)
    },
  }
  const spool = await open(1_000_000, folder, disk)
  const [first] = await Promise.all(Array.from({ length: before }, (_, at) => spool.append(aHead(at + 1), bytes(at + 1))))
  isFull = true
  await expect(spool.append(aHead(9), bytes(9))).rejects.toMatchObject({ code: 'SPOOL_FULL' })
  let isNoted = false
  const noted = Promise.all([spool.markStored(first as Entry, 'v'), spool.markAnnounced([first as Entry])]).then(() => {
    isNoted = true
  })
  await expect(spool.append(aHead(9), bytes(9))).rejects.toMatchObject({ code: 'SPOOL_FULL' })
  expect(isNoted).toBe(false)
  isFull = false
  await noted
  await spool.append(aHead(before + 1), bytes(before + 1))
  const left = Array.from({ length: before }, (_, at) => at + 2)
  expect(seqs(spool)).toEqual(left)
  rmSync(join(folder, 'lock'))
  const again = await open()
  expect(seqs(again)).toEqual(left)
  for (const entry of again.entries) expect((await again.read(entry)).equals(bytes(entry.seq))).toBe(true)
  expect(again.losses()).toEqual([])
  expect(again.oldestAt).toBe(1_002)
  await again.close()
})

test('what comes all at once is written in pieces of some megabytes', async () => {
  const commits: number[] = []
  const disk: Disk = {
    ...realDisk,
    async write(file, parts) {
      commits.push(parts.reduce((sum, part) => sum + part.length, 0))
      await realDisk.write(file, parts)
    },
  }
  const spool = await Spool.open({ folder, capacity: 100_000_000, segmentBytes: 16_000_000, disk }, log)
  await Promise.all(Array.from({ length: 30 }, (_, at) => spool.append(aHead(at + 1), Buffer.alloc(500_000, at))))
  expect(Math.max(...commits)).toBeLessThanOrEqual(8_000_000)
  expect(commits.length).toBeLessThan(10)
  await spool.close()
})

test('nothing is evicted while there is room', () => {
  expect(chooseEvictions([{ cameraId: 'a', seq: 1, bytes: 10, busy: false, isEvent: false }], 10, 10, 20)).toEqual([])
})

test('S2: a record whose length was damaged costs that frame, which is told as lost, and none behind it', async () => {
  const spool = await Spool.open({ folder, capacity: 1_000_000, segmentBytes: 100_000 }, log)
  for (let seq = 1; seq <= 5; seq += 1) await spool.append(aHead(seq), bytes(seq))
  await spool.close()
  const [segment] = readdirSync(folder).filter((name) => name.endsWith('.log'))
  const file = join(folder, segment ?? '')
  const damaged = readFileSync(file)
  // the third frame's stated body length
  const third = [...damaged.keys()].filter((at) => damaged.readUInt8(at) === 0xf1 && damaged[at + 1] === 0xa7 && damaged[at + 2] === 1)[2] ?? 0
  damaged.writeUInt8(0x7f, third + 8)
  writeFileSync(file, damaged)
  const again = await open()
  expect(seqs(again)).toEqual([1, 2, 4, 5])
  expect(again.losses()).toMatchObject([{ seqFrom: 3, seqTo: 3, reason: 'unreadable' }])
  await again.close()
})

test('after a restart an epoch whose frames are all gone is not reported as waiting', async () => {
  const spool = await open()
  for (let seq = 1; seq <= 12; seq += 1) {
    const entry = await spool.append(aHead(seq), bytes(seq))
    await spool.markStored(entry, '')
    await spool.markAnnounced([entry])
  }
  await spool.close()
  const again = await open()
  expect(again.counters).toMatchObject([{ highestSeq: 12, forgottenSeq: 12 }])
  await again.close()
})

test('a spool that filled up with small frames over a long outage opens again', async () => {
  const count = 150_000
  const parts: Buffer[] = []
  for (let seq = 1; seq <= count; seq += 1) parts.push(...encodeRecord(1, aHead(seq), Buffer.from([1])))
  writeFileSync(join(folder, '00000001.log'), Buffer.concat(parts))
  const spool = await Spool.open({ folder, capacity: 1_000_000, segmentBytes: 100_000_000 }, log)
  expect(spool.size.frames).toBe(count)
  expect(spool.counters).toMatchObject([{ highestSeq: count, forgottenSeq: 0 }])
  await spool.close()
})

test('a bad sector under a frame that waits costs that frame, and does not let the log grow until the disk is full', async () => {
  const spool = await open(40_000)
  const read = spool.read.bind(spool)
  const damaged = new Set<number>()
  spool.read = (entry, room) => {
    // those that are thinned out last
    if (entry.seq % 64 !== 16) return read(entry, room)
    damaged.add(entry.seq)
    return Promise.reject(Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO' }))
  }
  let most = 0
  for (let seq = 1; seq <= 600; seq += 1) {
    await spool.append(aHead(seq), bytes(seq))
    most = Math.max(most, spool.size.logBytes)
  }
  expect(damaged.size).toBeGreaterThan(0)
  expect(most).toBeLessThan(100_000)
  const told = spool.losses().filter(({ reason }) => reason === 'unreadable')
  expect(told.length).toBeGreaterThan(0)
  for (const { seqFrom, seqTo } of told) for (let seq = seqFrom; seq <= seqTo; seq += 1) expect(damaged.has(seq)).toBe(true)
  await spool.close()
})
