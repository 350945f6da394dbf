/**
 * `frameloop ledger`: what was captured against what became of it.
 *
 *   media   captured = validated + rejected + lost + erased + open      captured: what the agent itself says is durable
 *   frames  stated   = prepared + rejected + open                       stated: what extract says its media hold
 *
 * L1  The left-hand side never comes from the chain: `agents.reported` or the ingest API say it.
 * L2  A seq counts once it and all before it are final; `ledger` keeps that sum, so history is read once.
 * L3  Lost is what somebody reported lost. Nothing is lost by default: what is nowhere is open, with its age: since something
 *     later came, or since as many seqs ago as the camera takes in that time.
 * L4  Erased outweighs what it was before. There is no state "duplicate": ids are made from the seq, so what is announced
 *     twice is one medium.
 */
import type { Pool, Sql } from '@frameloop/kit/postgres'
import { type Ms, showMs } from '@frameloop/kit/units'

/** Sums over a part of an epoch. */
export interface Sums {
  readonly validated: number
  readonly rejected: number
  readonly lost: number
  readonly erased: number
  readonly framesStated: number
  readonly framesPrepared: number
  readonly framesRejected: number
}

/** A media row beyond what is settled. `frames*` are undefined until extract has said how many there are. */
export interface OpenMedia {
  readonly seq: number
  readonly state: 'captured' | 'validated' | 'rejected' | 'extracted'
  readonly framesStated: number
  readonly framesPrepared: number
  readonly framesRejected: number
  readonly recordedAt: number
}

export interface EpochFacts {
  readonly highestSeq: number
  /** Up to here the agent has stored and announced everything. */
  readonly forgottenSeq: number
  readonly settledSeq: number
  readonly settled: Sums
  /** Beyond `settledSeq`, in order of seq. */
  readonly media: readonly OpenMedia[]
  readonly losses: readonly { readonly from: number; readonly to: number; readonly reason: string }[]
  readonly now: number
  /** When the epoch was last heard of. */
  readonly reportedAt: number
  /** As the agent reports it; 0 where nothing comes. */
  readonly framesPerSecond: number
}

export interface Open {
  readonly from: number
  readonly to: number
  /** Where it stands: which step it waits for. */
  readonly waitsFor: string
  readonly age: Ms
}

export interface EpochLedger {
  readonly captured: number
  readonly sums: Sums
  readonly open: readonly Open[]
  readonly openMedia: number
  readonly openFrames: number
  /** For the next time: what is final now. */
  readonly settledSeq: number
  readonly settled: Sums
}

const add = (a: Sums, b: Partial<Sums>): Sums => ({
  validated: a.validated + (b.validated ?? 0),
  rejected: a.rejected + (b.rejected ?? 0),
  lost: a.lost + (b.lost ?? 0),
  erased: a.erased + (b.erased ?? 0),
  framesStated: a.framesStated + (b.framesStated ?? 0),
  framesPrepared: a.framesPrepared + (b.framesPrepared ?? 0),
  framesRejected: a.framesRejected + (b.framesRejected ?? 0),
})

/** The account of one epoch: pure. */
export function account(facts: EpochFacts): EpochLedger {
  const { highestSeq, forgottenSeq, settledSeq, now, framesPerSecond } = facts
  let sums = facts.settled
  let settled = facts.settled
  let settledTo = settledSeq
  let unbroken = true
  let openMedia = 0
  let openFrames = 0
  const open: Open[] = []
  const isIn = (seq: number, isErased: boolean): boolean => facts.losses.some(({ from, to, reason }) => from <= seq && seq <= to && (reason === 'erased') === isErased)
  const wait = (seq: number, waitsFor: string, age: Ms): void => {
    unbroken = false
    const last = open.at(-1)
    if (last && last.waitsFor === waitsFor && last.to === seq - 1) open[open.length - 1] = { ...last, to: seq, age: Math.max(last.age, age) }
    else open.push({ from: seq, to: seq, waitsFor, age })
  }
  const bySeq = new Map(facts.media.map((row) => [row.seq, row]))
  // what comes after a missing one was announced after it: since then it is overdue
  let laterSince: number | undefined
  const overdueSince = new Map<number, number>()
  for (let seq = Math.max(highestSeq, facts.media.at(-1)?.seq ?? 0); seq > settledSeq; seq -= 1) {
    const row = bySeq.get(seq)
    if (row) laterSince = Math.min(laterSince ?? row.recordedAt, row.recordedAt)
    else if (laterSince !== undefined) overdueSince.set(seq, laterSince)
  }
  for (let seq = settledSeq + 1; seq <= highestSeq; seq += 1) {
    const row = bySeq.get(seq)
    let part: Partial<Sums> | undefined
    if (isIn(seq, true)) part = { erased: 1 }
    else if (row?.state === 'rejected') part = { rejected: 1 }
    else if (row?.state === 'extracted') {
      const waiting = row.framesStated - row.framesPrepared - row.framesRejected
      part = { validated: 1, framesStated: row.framesStated, framesPrepared: row.framesPrepared, framesRejected: row.framesRejected }
      if (waiting > 0) {
        openFrames += waiting
        wait(seq, 'features', now - row.recordedAt)
      }
    } else if (row?.state === 'validated') {
      part = { validated: 1 }
      wait(seq, 'extract', now - row.recordedAt)
    } else if (row) {
      openMedia += 1
      wait(seq, 'validate', now - row.recordedAt)
    } else if (isIn(seq, false)) part = { lost: 1 }
    else {
      openMedia += 1
      const since = overdueSince.get(seq) ?? facts.reportedAt - (framesPerSecond > 0 ? ((highestSeq - seq) * 1000) / framesPerSecond : 0)
      wait(seq, seq <= forgottenSeq ? 'nothing: it was announced and never arrived' : 'the agent to send it from its spool', now - since)
    }
    if (part) sums = add(sums, part)
    if (unbroken && part) {
      settled = add(settled, part)
      settledTo = seq
    }
  }
  return { captured: highestSeq, sums, open, openMedia, openFrames, settledSeq: settledTo, settled }
}

export interface CameraLedger extends EpochLedger {
  readonly cameraId: string
  readonly epoch: string
  readonly agentId: string
  readonly reportedAt: Date
}

interface CaptureRow {
  readonly camera_id: string
  readonly epoch: string
  readonly agent_id: string
  readonly highest_seq: number
  readonly forgotten_seq: number
  readonly source_kind: string
  readonly frames_per_second: number
  readonly reported_at: Date
  readonly settled_seq: number
  readonly validated: number
  readonly rejected: number
  readonly lost: number
  readonly erased: number
  readonly frames_stated: number
  readonly frames_prepared: number
  readonly frames_rejected: number
}

const states = ['', 'captured', 'validated', 'rejected', 'extracted'] as const

async function selectOpenMedia(sql: Sql, { camera_id, epoch, settled_seq }: CaptureRow): Promise<OpenMedia[]> {
  const { rows } = await sql.query<{ seq: number; status_rank: number; frame_count: number | null; prepared: number; rejected: number; recorded_at: Date }>(
    `select m.seq, max(m.status_rank) as status_rank, max(m.frame_count) as frame_count, min(m.recorded_at) as recorded_at,
       count(distinct f.frame_id) filter (where f.status_rank = 3)::int as prepared, count(distinct f.frame_id) filter (where f.status_rank = 2)::int as rejected
     from media m left join frames f on f.media_id = m.media_id
     where m.camera_id = $1 and m.epoch = $2 and m.seq > $3 group by m.seq order by m.seq`,
    [camera_id, epoch, settled_seq],
  )
  return rows.map((row) => ({
    seq: row.seq,
    state: states[row.status_rank] || 'captured',
    framesStated: row.frame_count ?? 0,
    framesPrepared: row.prepared,
    framesRejected: row.rejected,
    recordedAt: row.recorded_at.getTime(),
  }))
}

async function keepSettled(sql: Sql, { cameraId, epoch, settledSeq, settled }: CameraLedger): Promise<void> {
  await sql.query(
    `insert into ledger (camera_id, epoch, settled_seq, validated, rejected, lost, erased, frames_stated, frames_prepared, frames_rejected) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
     on conflict (camera_id, epoch) do update set settled_seq = excluded.settled_seq, validated = excluded.validated, rejected = excluded.rejected, lost = excluded.lost,
       erased = excluded.erased, frames_stated = excluded.frames_stated, frames_prepared = excluded.frames_prepared, frames_rejected = excluded.frames_rejected, updated_at = now()
     where ledger.settled_seq < excluded.settled_seq`,
    [cameraId, epoch, settledSeq, settled.validated, settled.rejected, settled.lost, settled.erased, settled.framesStated, settled.framesPrepared, settled.framesRejected],
  )
}

/** The account of every epoch, and keeps what became final. */
export async function readLedger(pool: Pool): Promise<CameraLedger[]> {
  const { rows } = await pool.query<CaptureRow>(
    `select c.camera_id, c.epoch, c.agent_id, c.highest_seq, c.forgotten_seq, c.source_kind, c.frames_per_second, c.reported_at, coalesce(l.settled_seq, 0) as settled_seq, coalesce(l.validated, 0) as validated,
       coalesce(l.rejected, 0) as rejected, coalesce(l.lost, 0) as lost, coalesce(l.erased, 0) as erased, coalesce(l.frames_stated, 0) as frames_stated, coalesce(l.frames_prepared, 0) as frames_prepared, coalesce(l.frames_rejected, 0) as frames_rejected
     from captures c left join ledger l using (camera_id, epoch) order by c.camera_id, c.reported_at`,
  )
  const ledgers: CameraLedger[] = []
  for (const row of rows) {
    const losses = await pool.query<EpochFacts['losses'][number]>(
      'select seq_from as "from", seq_to as "to", reason from losses where camera_id = $1 and epoch = $2 and seq_to > $3',
      [row.camera_id, row.epoch, row.settled_seq],
    )
    const ledger: CameraLedger = {
      cameraId: row.camera_id,
      epoch: row.epoch,
      agentId: row.agent_id,
      reportedAt: row.reported_at,
      ...account({
        highestSeq: row.highest_seq,
        // uploads have no spool: what ingest counted it has stored, or will announce by itself
        forgottenSeq: row.source_kind === 'upload' ? row.highest_seq : row.forgotten_seq,
        settledSeq: row.settled_seq,
        settled: {
          validated: row.validated,
          rejected: row.rejected,
          lost: row.lost,
          erased: row.erased,
          framesStated: row.frames_stated,
          framesPrepared: row.frames_prepared,
          framesRejected: row.frames_rejected,
        },
        media: await selectOpenMedia(pool, row),
        losses: losses.rows,
        now: Date.now(),
        reportedAt: row.reported_at.getTime(),
        framesPerSecond: row.frames_per_second,
      }),
    }
    if (ledger.settledSeq > row.settled_seq) await keepSettled(pool, ledger)
    ledgers.push(ledger)
  }
  return ledgers
}

/** Open for longer than this is unaccounted for, unless somebody says otherwise. */
export const openLimit: Ms = 60_000

export function overdue(ledgers: readonly CameraLedger[], limit: Ms = openLimit): Open[] {
  return ledgers.flatMap(({ open }) => open.filter(({ age }) => age > limit))
}

export function showLedger(ledgers: readonly CameraLedger[], limit: Ms = openLimit): string {
  if (ledgers.length === 0) return 'No camera has reported yet.'
  const lines = ledgers.flatMap(({ cameraId, epoch, agentId, reportedAt, captured, sums, open, openMedia, openFrames }) => [
    `camera ${cameraId}  epoch ${epoch.slice(0, 8)}  ${agentId}, last heard of at ${reportedAt.toISOString()}`,
    `  media   captured ${captured} = validated ${sums.validated} + rejected ${sums.rejected} + lost ${sums.lost} + erased ${sums.erased} + open ${openMedia}`,
    `  frames  stated ${sums.framesStated} = prepared ${sums.framesPrepared} + rejected ${sums.framesRejected} + open ${openFrames}`,
    ...open.map(({ from, to, waitsFor, age }) => `  ${age > limit ? 'OVERDUE' : 'open   '} seq ${from === to ? from : `${from} to ${to}`} waits for ${waitsFor}, ${showMs(age)}`),
  ])
  const late = overdue(ledgers, limit)
  return [...lines, late.length === 0 ? 'Everything captured is accounted for.' : `${late.reduce((sum, { from, to }) => sum + to - from + 1, 0)} media are unaccounted for.`].join(
    '\n',
  )
}
