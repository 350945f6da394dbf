/**
 * The catalog: how quick rows are written, against COPY of the same rows and against one insert a row, conflicts handled;
 * and how long the questions that people ask take at ten million rows.
 */
import { randomUUID } from 'node:crypto'
import { chmodSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openLog } from '@frameloop/kit/log'
import { inTransaction, openPool, type Pool } from '@frameloop/kit/postgres'
import { writeRows } from '@frameloop/stream-processors/catalog/catalog'
import { noRows } from '@frameloop/stream-processors/catalog/rows'
import { ensureDays } from '@frameloop/stream-processors/catalog/sql'
import { openOwnHome } from '../../deploy/e2e/own-stack.ts'
import { openHome } from '../../deploy/src/home.ts'
import { ensureDatabases, preparePostgres } from '../../deploy/src/postgres.ts'
import { migrate } from '../../deploy/src/provision.ts'
import { Supervisor } from '../../deploy/src/supervisor.ts'
import { median } from './measure.ts'

const batch = 500
const rowsPerRound = 20_000
const rounds = 5
const manyRows = 10_000_000
const cameras = 20
const firstDay = Date.UTC(2026, 10, 1)

const columns =
  'media_id, site_id, camera_id, agent_id, epoch, seq, source, kind, lane, captured_at, media_offset_us, status_rank, reason, bucket, object_key, object_sha256, object_bytes, format, width, height, frame_count, parameters, trace_id'

function mediaRow(seq: number): Record<string, unknown> {
  const mediaId = randomUUID()
  return {
    media_id: mediaId,
    site_id: 'bench',
    camera_id: `camera-${seq % cameras}`,
    agent_id: 'agent-1',
    epoch: 'e'.repeat(32),
    seq,
    source: 'camera',
    kind: 'image',
    lane: 'live',
    captured_at: new Date(firstDay + seq * 50).toISOString(),
    media_offset_us: null,
    status_rank: 2,
    reason: '',
    bucket: 'frameloop-raw',
    object_key: `raw/bench/camera-${seq % cameras}/2026/11/01/00/${mediaId}.jpg`,
    object_sha256: 'a'.repeat(64),
    object_bytes: 34_000,
    format: 'jpeg',
    width: 1920,
    height: 1080,
    frame_count: null,
    parameters: { validate: { version: '2', brightness: 101.2, sharpness: 431.7, phash: '0123456789abcdef', marks: [] } },
    trace_id: 'f'.repeat(32),
  }
}

const csv = (row: Readonly<Record<string, unknown>>): string =>
  columns
    .split(', ')
    .map((name) => (row[name] === null ? '' : `"${(typeof row[name] === 'object' ? JSON.stringify(row[name]) : String(row[name])).replaceAll('"', '""')}"`))
    .join(',')

/** Rows a second of one way of writing; a tenth of the rows are there already when conflicts are handled. */
async function timed(pool: Pool, rows: readonly Record<string, unknown>[], write: () => Promise<void>, withConflicts: boolean): Promise<number> {
  await pool.query('truncate media')
  if (withConflicts) await inTransaction(pool, (client) => writeRows(client, { ...noRows(), media: rows.filter((_, at) => at % 10 === 0) }))
  await pool.query('checkpoint')
  const since = performance.now()
  await write()
  const seconds = (performance.now() - since) / 1000
  const { rows: found } = await pool.query<{ n: number }>('select count(*)::int as n from media')
  if (found[0]?.n !== rows.length) throw new Error(`${found[0]?.n} rows are there, ${rows.length} were written: the comparison is void`)
  return rows.length / seconds
}

async function benchInserts(pool: Pool, folder: string, say: (text: string) => void): Promise<object> {
  const speeds: Record<'catalog' | 'copy' | 'rowByRow', number[]> = { catalog: [], copy: [], rowByRow: [] }
  for (let round = 0; round < rounds; round += 1) {
    const rows = Array.from({ length: rowsPerRound }, (_, at) => mediaRow(round * rowsPerRound + at))
    const file = join(folder, 'rows.csv')
    writeFileSync(file, `${rows.map(csv).join('\n')}\n`)
    chmodSync(file, 0o644)
    const catalog = async (): Promise<void> => {
      for (let at = 0; at < rows.length; at += batch) await inTransaction(pool, (client) => writeRows(client, { ...noRows(), media: rows.slice(at, at + batch) }))
    }
    // the server reads the file itself: no client could be quicker
    const copy = async (): Promise<void> => void (await pool.query(`copy media (${columns}) from '${file}' with (format csv)`))
    const few = rows.slice(0, 2_000)
    const rowByRow = async (): Promise<void> => {
      for (const row of few) await writeRows(pool, { ...noRows(), media: [row] })
    }
    const order = round % 2 === 0 ? (['catalog', 'copy', 'rowByRow'] as const) : (['rowByRow', 'copy', 'catalog'] as const)
    for (const name of order) {
      if (name === 'catalog') speeds.catalog.push(await timed(pool, rows, catalog, true))
      else if (name === 'copy') speeds.copy.push(await timed(pool, rows, copy, false))
      else speeds.rowByRow.push(await timed(pool, few, rowByRow, true))
    }
    say(
      `round ${round + 1} of ${rounds}: catalog ${Math.round(speeds.catalog.at(-1) ?? 0)}, COPY ${Math.round(speeds.copy.at(-1) ?? 0)}, one by one ${Math.round(speeds.rowByRow.at(-1) ?? 0)} rows a second`,
    )
  }
  const ratios = (other: readonly number[]): number[] => speeds.catalog.map((speed, at) => speed / (other[at] ?? 1))
  const [toCopy, toRows] = [ratios(speeds.copy), ratios(speeds.rowByRow)]
  say(
    `median of paired ratios: ${median(toCopy).toFixed(2)} x COPY (${Math.min(...toCopy).toFixed(2)} to ${Math.max(...toCopy).toFixed(2)}), ${median(toRows).toFixed(1)} x one by one (${Math.min(...toRows).toFixed(1)} to ${Math.max(...toRows).toFixed(1)})`,
  )
  return { rowsPerSecond: speeds, toCopy, toRows }
}

/** Ten million media, one frame and one record of features each, over as many days as 20 cameras at one frame a second take. */
async function fill(pool: Pool, say: (text: string) => void): Promise<void> {
  const each = 500_000
  await pool.query('truncate media, frames, features, hops, dead_letters')
  const days = Math.ceil(manyRows / cameras / 86_400) + 1
  await ensureDays(
    pool,
    Array.from({ length: days }, (_, at) => new Date(firstDay + at * 86_400_000).toISOString().slice(0, 10)),
  )
  const id = (salt: string): string => `md5('${salt}' || i)::uuid`
  const at = `timestamptz '${new Date(firstDay).toISOString()}' + (i / ${cameras}) * interval '1 second'`
  const camera = `'camera-' || i % ${cameras}`
  for (let from = 0; from < manyRows; from += each) {
    const series = `generate_series(${from}, ${from + each - 1}) i`
    await pool.query(
      `insert into media (media_id, site_id, camera_id, agent_id, epoch, seq, captured_at, status_rank, reason, bucket, object_key, object_sha256, object_bytes, format, width, height)
       select ${id('m')}, 'bench', ${camera}, 'agent-1', 'e', i / ${cameras}, ${at}, case when i % 100 = 0 then 3 else 4 end, '', 'frameloop-raw', 'raw/bench/' || i, md5(i::text), 34000, 'jpeg', 1920, 1080 from ${series}`,
    )
    await pool.query(
      `insert into frames (frame_id, media_id, camera_id, epoch, seq, frame_at, status_rank) select ${id('f')}, ${id('m')}, ${camera}, 'e', i / ${cameras}, ${at}, 3 from ${series}`,
    )
    await pool.query(
      `insert into features (frame_id, preprocessing, camera_id, frame_at, bucket, object_key, object_sha256, parameters, topic, partition, record_offset, prepared_at)
       select ${id('f')}, 'abcdef012345678' || i / 3000000, ${camera}, ${at}, 'frameloop-processed', 'processed/' || i, md5(i::text), jsonb_build_object('stageVersion', (1 + i / 4000000)::text), 'features.prepared', i % 6, i / 6, ${at} from ${series}`,
    )
    await pool.query(
      `insert into hops (topic, partition, record_offset, subject_id, at)
       select topic, i % 6, i / 6, case when topic like 'media%' then ${id('m')} else ${id('f')} end, ${at} from ${series}, unnest(array['media.captured', 'media.validated', 'frames.extracted', 'features.prepared']) topic where i % 10 = 0`,
    )
    await pool.query(
      `insert into dead_letters (topic, partition, record_offset, stage, reason, origin_topic, origin_partition, origin_offset, camera_id, subject_id, at)
       select 'media.captured.dead-letters', i % 6, i / 6, 'validate', (array['PICTURE_UNREADABLE', 'DIGEST_MISMATCH', 'OBJECT_MISSING'])[1 + i / 100 % 3], 'media.captured', i % 6, i / 6, ${camera}, ${id('m')}, ${at} from ${series} where i % 100 = 0`,
    )
    say(`${((from + each) / 1e6).toFixed(1)} of ${manyRows / 1e6} million rows`)
  }
  await pool.query('vacuum analyze')
}

async function benchQueries(pool: Pool, say: (text: string) => void): Promise<object> {
  const anyRow = (): number => Math.floor(Math.random() * (manyRows / 10)) * 10
  const day = (n: number): string => new Date(firstDay + n * 86_400_000).toISOString().slice(0, 10)
  const questions: Readonly<Record<string, () => readonly [string, readonly unknown[]]>> = {
    "a frame's way": () => [`select * from frame_way(md5('f' || ${anyRow()}::text)::uuid)`, []],
    "a medium's way": () => [`select * from frame_way(md5('m' || ${anyRow()}::text)::uuid)`, []],
    "a camera's day": () => ['select * from camera_day($1, $2::date)', [`camera-${Math.floor(Math.random() * cameras)}`, day(1 + Math.floor(Math.random() * 3))]],
    'rejects by reason, one day': () => ['select * from rejects_by_reason($1, $2)', [day(2), day(3)]],
    'rejects by reason, all days': () => ['select * from rejects_by_reason($1, $2)', [day(0), day(30)]],
    'feature versions': () => ['select * from feature_versions()', []],
  }
  const found: Record<string, { readonly medianMs: number; readonly slowestMs: number; readonly rows: number }> = {}
  for (const [name, make] of Object.entries(questions)) {
    const times: number[] = []
    let rows = 0
    for (let round = 0; round < 60; round += 1) {
      const [text, values] = make()
      const since = performance.now()
      rows = (await pool.query(text, [...values])).rows.length
      if (round >= 10) times.push(performance.now() - since)
    }
    if (rows === 0) throw new Error(`${name} found nothing: the measurement is void`)
    const sorted = times.sort((a, b) => a - b)
    found[name] = { medianMs: Math.round(median(sorted) * 10) / 10, slowestMs: Math.round((sorted.at(-1) ?? 0) * 10) / 10, rows }
    say(`${name.padEnd(30)} median ${found[name].medianMs} ms, slowest of 50 ${found[name].slowestMs} ms, ${rows} rows`)
  }
  return found
}

export async function benchCatalog(say: (text: string) => void): Promise<object> {
  await using folder = openOwnHome()
  process.env['FRAMELOOP_HOME'] = folder.folder
  const home = openHome()
  const supervisor = new Supervisor(home, say)
  try {
    const database = await preparePostgres(home, 15_432)
    await supervisor.start(database.program)
    await ensureDatabases(database.urlOf('postgres'), ['frameloop'])
    await migrate(database.urlOf('frameloop'), openLog('bench', 'warn'))
    const pool = openPool(database.urlOf('frameloop'), 'bench', 2)
    try {
      await ensureDays(pool, [new Date(firstDay).toISOString().slice(0, 10)])
      const inserts = await benchInserts(pool, folder.folder, say)
      await fill(pool, say)
      return { inserts, tenMillionRows: await benchQueries(pool, say) }
    } finally {
      await pool.end()
    }
  } finally {
    await supervisor.stop()
  }
}
