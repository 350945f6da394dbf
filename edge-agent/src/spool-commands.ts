/** What `frameloop-agent spool …` shows and copies. */
import { mkdirSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Bytes, showBytes } from '@frameloop/kit/units'
import type { Spool } from './spool/spool.ts'
import { showTable } from './table.ts'

export function showSpool(spool: Spool, asJson: boolean): string {
  if (asJson) return [...spool.entries].map(({ head, bytes, stored }) => JSON.stringify({ ...head, bytes, stored: stored !== undefined })).join('\n')
  const oldest = new Map<string, number>()
  for (const { cameraId, head } of spool.entries) oldest.set(`${cameraId} ${head.epoch}`, Math.min(oldest.get(`${cameraId} ${head.epoch}`) ?? head.capturedAt, head.capturedAt))
  const rows = spool.account.map(({ cameraId, epoch, highestSeq, delivered, waiting, lost, unaccounted }) => {
    const since = oldest.get(`${cameraId} ${epoch}`)
    return [cameraId, epoch.slice(0, 8), ...[highestSeq, delivered, waiting, lost, unaccounted].map(String), since === undefined ? '' : new Date(since).toISOString()]
  })
  const { frames, bytes } = spool.size
  return `${showTable(['camera', 'epoch', 'captured', 'delivered', 'waiting', 'lost', 'unaccounted', 'waiting since'], rows)}\n${frames} frames wait, ${showBytes(bytes)}`
}

/** Files named after camera, time and seq. `gone`: delivered, moved or given up by its agent meanwhile. */
export async function exportFrames(spool: Spool, folder: string, camera: string | undefined): Promise<{ readonly frames: number; readonly bytes: Bytes; readonly gone: number }> {
  mkdirSync(folder, { recursive: true })
  let [frames, bytes, gone] = [0, 0, 0]
  for (const entry of spool.entries) {
    const { cameraId, capturedAt, seq, extension } = entry.head
    // its bytes are in S3, and were not kept here
    if (entry.isEmpty || (camera !== undefined && cameraId !== camera)) continue
    const body = await spool.read(entry).catch((thrown: unknown) => {
      if (!spool.hasGone(entry)) throw thrown
      gone += 1
    })
    if (!body) continue
    await writeFile(join(folder, `${cameraId}-${new Date(capturedAt).toISOString().replace(/[:.]/g, '-')}-${seq}.${extension}`), body)
    frames += 1
    bytes += body.length
  }
  return { frames, bytes, gone }
}
