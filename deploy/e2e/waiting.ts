/** Waiting for a condition, and counting what is on its way. */
import type { Pool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import type { EpochMs, Ms } from '@frameloop/kit/units'

/** Asks until there is an answer; fails after `within` ms. */
export async function soon<Answer>(ask: () => Promise<Answer | undefined>, within = 240_000): Promise<Answer> {
  const answer = await until(ask, within, 200)
  if (answer === undefined) throw new Error(`nothing came within ${within} ms`)
  return answer
}

/** Whether each of so many cameras has a frame captured after `since` that has been prepared: every process on its way works. Undefined when `within` has passed. */
export function framesFlow(sql: Pool, cameras: number, since: EpochMs, within: Ms): Promise<true | undefined> {
  return until(
    async () => (await sql.query('select camera_id from features where frame_at > $1 group by camera_id', [new Date(since)])).rowCount === cameras || undefined,
    within,
    100,
  )
}

/** Captured media of a camera of which nothing is known further on: neither validated nor rejected nor reported lost. */
export async function unaccounted(sql: Pool, cameraId: string): Promise<number> {
  const { rows } = await sql.query<{ missing: number }>(
    `select coalesce(sum(c.highest_seq - (select count(*) from media m where m.camera_id = c.camera_id and m.epoch = c.epoch and m.status_rank >= 2 and m.seq <= c.highest_seq)
       - (select coalesce(sum(l.seq_to - l.seq_from + 1), 0) from losses l where l.camera_id = c.camera_id and l.epoch = c.epoch)), 0)::int as missing
     from captures c where c.camera_id = $1 and (c.reported_at < now() - interval '3 seconds' or c.state = 'ended')`,
    [cameraId],
  )
  return rows[0]?.missing ?? 0
}
