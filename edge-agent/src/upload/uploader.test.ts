import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLog } from '@frameloop/kit/log'
import { StoreRefusal } from '@frameloop/kit/object-requests'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import { expect, test } from 'vitest'
import type { FrameHead } from '../spool/contents.ts'
import { Spool } from '../spool/spool.ts'
import { runUploader, type Troubles } from './uploader.ts'

const log = openLog('test', 'silent')
const aHead = (cameraId: string, seq: number): FrameHead => ({
  ...{ cameraId, epoch: 'e'.repeat(32), seq, kind: 'image', extension: 'jpg', capturedAt: Date.now(), mediaOffsetUs: null, width: 1, height: 1 },
  ...{ sourceName: '', sha256: '0'.repeat(64), traceparent: '' },
})

/** An uploader over a spool of its own, until `act` has ended. */
async function uploading(store: Pick<ObjectStore, 'putOnce'>, act: (spool: Spool) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-refused-'))
  const spool = await Spool.open({ folder, capacity: 100_000_000, segmentBytes: 1_000_000 }, log)
  const stop = new AbortController()
  const limits = () => ({ concurrency: 4, limit: 0, windows: [], outside: 'live' }) as const
  const running = runUploader(spool, store as ObjectStore, { agentId: 'a', siteId: 's', bucketPrefix: 'b' }, limits, { uploads: new Map(), announcements: '' }, log, stop.signal)
  try {
    await act(spool)
  } finally {
    stop.abort()
    await running
    await spool.close()
    rmSync(folder, { recursive: true, force: true })
  }
}

test('a camera of which one frame is refused while another is taken is not held for good', async () => {
  const stored: string[] = []
  let asked = 0
  let begun = (): void => {}
  const second = new Promise<void>((resolve) => {
    begun = resolve
  })
  const putOnce: ObjectStore['putOnce'] = async ({ key, metadata }) => {
    asked += 1
    const isFirst = asked === 1
    if (asked === 2) begun()
    // the first is refused while the second is on its way, which is taken
    if (isFirst) {
      await second
      throw new StoreRefusal(403, '<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>')
    }
    await new Promise((resolve) => setTimeout(resolve, 50))
    stored.push(metadata?.['seq'] ?? '')
    return { bucket: '', key, sha256: '', bytes: 0, versionId: '' }
  }
  await uploading({ putOnce }, async (spool) => {
    for (let seq = 1; seq <= 20; seq += 1) await spool.append(aHead('door', seq), Buffer.alloc(100))
    expect(await until(() => stored.length === 20 || undefined, 10_000, 5), `${stored.length} were stored`).toBe(true)
  })
})

test('a camera whose frames are refused holds up no other one, and goes on when they are taken', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-refused-'))
  const spool = await Spool.open({ folder, capacity: 100_000_000, segmentBytes: 1_000_000 }, log)
  const stored: string[] = []
  let [isRefused, refusals] = [true, 0]
  const store = {
    async putOnce({ key, metadata }: { readonly key: string; readonly metadata?: Readonly<Record<string, string>> }) {
      if (isRefused && metadata?.['camera-id'] === 'door') {
        refusals += 1
        throw new StoreRefusal(403, '<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>')
      }
      stored.push(`${metadata?.['camera-id']} ${metadata?.['seq']}`)
      return { bucket: '', key, sha256: '', bytes: 0, versionId: '' }
    },
  } as unknown as ObjectStore
  const troubles: Troubles = { uploads: new Map(), announcements: '' }
  const stop = new AbortController()
  const running = runUploader(
    spool,
    store,
    { agentId: 'a', siteId: 's', bucketPrefix: 'b' },
    () => ({ concurrency: 4, limit: 0, windows: [], outside: 'live' }),
    troubles,
    log,
    stop.signal,
  )
  try {
    for (let seq = 1; seq <= 200; seq += 1) await Promise.all(['door', 'gate'].map((camera) => spool.append(aHead(camera, seq), Buffer.alloc(100))))
    expect(await until(() => stored.filter((one) => one.startsWith('gate')).length === 200 || undefined, 10_000, 5), `${stored.length} were stored`).toBe(true)
    expect(troubles.uploads.get('door')).toContain('AccessDenied')
    // it is asked now and then, not for each frame
    expect(refusals).toBeLessThan(60)
    isRefused = false
    expect(await until(() => stored.length === 400 || undefined, 20_000, 5), `${stored.length} were stored`).toBe(true)
    expect(troubles.uploads.size).toBe(0)
  } finally {
    stop.abort()
    await running
    await spool.close()
    rmSync(folder, { recursive: true, force: true })
  }
})

test('a clock that is put right by hours does not stop uploads until the time has come again', async () => {
  const stored: string[] = []
  const real = Date.now
  const putOnce: ObjectStore['putOnce'] = async ({ key, metadata }) => {
    stored.push(metadata?.['seq'] ?? '')
    return { bucket: '', key, sha256: '', bytes: 0, versionId: '' }
  }
  try {
    Date.now = () => real() + 8 * 3_600_000
    await uploading({ putOnce }, async (spool) => {
      await spool.append(aHead('door', 1), Buffer.alloc(100))
      expect(await until(() => stored.length === 1 || undefined, 10_000, 5)).toBe(true)
      Date.now = real
      for (let seq = 2; seq <= 20; seq += 1) await spool.append(aHead('door', seq), Buffer.alloc(100))
      expect(await until(() => stored.length === 20 || undefined, 10_000, 5), `${stored.length} were stored`).toBe(true)
    })
  } finally {
    Date.now = real
  }
})
