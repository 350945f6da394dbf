/** One picture of our own through ingest, validate, extract and features: only when it is prepared is the stack ready. */
import { Fault } from '@frameloop/kit/fault'
import { openPool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import type { Ms } from '@frameloop/kit/units'
import { probeCameraId } from '@frameloop/schemas/ids'

/** 64 × 64, grey. */
const picture = Buffer.from(
  '/9j/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCABAAEADASIAAhEBAxEB/8QAFQABAQAAAAAAAAAAAAAAAAAAAAP/xAAUEAEAAAAAAAAAAAAAAAAAAAAA/8QAFAEBAAAAAAAAAAAAAAAAAAAAAP/EABQRAQAAAAAAAAAAAAAAAAAAAAD/2gAMAwEAAhEDEQA/AJgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA//2Q==',
  'base64',
)

const patience = 30_000
const limit = 6 * patience

/** Sends a new frame of the camera `frameloop-probe` and waits for its features in the catalog; `say` hears when that takes long, and how far it is. Throws `PART_NOT_READY`. */
export async function probeChain(ingestUrl: string, databaseUrl: string, say: (line: string) => void): Promise<Ms> {
  const since = Date.now()
  const response = await fetch(`${ingestUrl}/v1/media?source=${probeCameraId}`, {
    method: 'POST',
    headers: { 'content-type': 'image/jpeg' },
    body: picture,
    signal: AbortSignal.timeout(limit),
  })
  if (!response.ok) throw new Fault('PART_NOT_READY', `ingest refused the probe frame with status ${response.status}`, { name: 'ingest' })
  const { frameId } = (await response.json()) as { frameId: string }
  const pool = openPool(databaseUrl, 'probe', 1)
  const isPrepared = async () => ((await pool.query('select 1 from features where frame_id = $1', [frameId])).rowCount ?? 0) > 0 || undefined
  const furthest = async () =>
    (await pool.query<{ topic: string }>('select topic from hops where subject_id = $1 order by at desc limit 1', [frameId])).rows[0]?.topic ?? 'media.captured'
  try {
    for (;;) {
      if (await until(isPrepared, patience, 50)) return Date.now() - since
      const waited = Date.now() - since
      const where = `The probe frame ${frameId} is not prepared after ${Math.round(waited / 1000)} s, the last topic it reached is ${await furthest()}`
      if (waited >= limit) throw new Fault('PART_NOT_READY', where, { name: 'features', frameId })
      say(`  ${where}; waiting on`)
    }
  } finally {
    await pool.end()
  }
}
