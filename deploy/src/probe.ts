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

/** Sends a new frame of the camera `frameloop-probe` and waits for its features in the catalog. Throws `PART_NOT_READY`. */
export async function probeChain(ingestUrl: string, databaseUrl: string, limit: Ms = 30_000): Promise<Ms> {
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
  try {
    const prepared = await until(async () => ((await pool.query('select 1 from features where frame_id = $1', [frameId])).rowCount ?? 0) > 0 || undefined, limit, 50)
    if (!prepared) throw new Fault('PART_NOT_READY', `The probe frame ${frameId} was not prepared within ${limit / 1000} s`, { name: 'features', frameId })
    return Date.now() - since
  } finally {
    await pool.end()
  }
}
