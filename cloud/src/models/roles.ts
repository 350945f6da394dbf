/** Who serves under which alias. The promotion log in PostgreSQL is the truth; the event and MLflow's alias follow it. */
import { Fault } from '@frameloop/kit/fault'
import { inTransaction, type Pool, type Sql } from '@frameloop/kit/postgres'
import type { Ms } from '@frameloop/kit/units'
import { topics } from '@frameloop/schemas/topics'
import { enqueue } from '../outbox.ts'
import type { Mlflow } from './mlflow.ts'

export interface ModelVersion {
  readonly task: string
  readonly version: string
  readonly modelName: string
  readonly runId: string
  readonly digest: string
  readonly artifactPath: string
  readonly preprocessing: string
  readonly datasetDigest: string
}

/** `champion` answers; `challenger` answers a share of the frames in its place; `shadow` answers too, on record, and nobody is told. */
export const aliases = ['champion', 'challenger', 'shadow'] as const
export type Alias = (typeof aliases)[number]

/** How a version serves. */
export interface Role {
  readonly alias: Alias
  /** Of the frames; a challenger's. */
  readonly share?: number
  /** How long a champion is judged beside the one before it; not at all when absent. */
  readonly probation?: Ms
  /** A champion takes its place again. */
  readonly isRollback?: boolean
}

/** What a new champion gets, unless somebody insists on it. */
export const probationTime: Ms = 600_000

/** Writes the promotion and tells models.changed, in the caller's transaction. */
export async function recordPromotion(sql: Sql, model: ModelVersion, { alias, share = 1, probation, isRollback = false }: Role, decidedBy: string, reason: string): Promise<void> {
  await sql.query(
    "insert into promotions (task, alias, version, decided_by, reason, share, probation_until, is_rollback) values ($1, $2, $3, $4, $5, $6, now() + $7::double precision * interval '1 ms', $8)",
    [model.task, alias, model.version, decidedBy, reason, share, probation ?? null, isRollback],
  )
  await enqueue(sql, topics.modelsChanged, `${model.task}:${alias}`, `${model.modelName}-${model.version}`, { ...model, alias, share, decidedBy, reason, changedAt: Date.now() })
}

export interface VersionRow {
  readonly task: string
  readonly version: string
  readonly model_name: string
  readonly run_id: string
  readonly digest: string
  readonly artifact_path: string
  readonly preprocessing: string
  readonly dataset_digest: string
  readonly cut_at: Date
  readonly created_at: Date
  readonly metrics: object
}

/** Throws `NOT_FOUND` naming the versions there are. */
export async function selectVersion(sql: Sql, task: string, version: string): Promise<VersionRow> {
  const { rows } = await sql.query<VersionRow>('select * from model_versions where task = $1 order by created_at', [task])
  const found = rows.find((row) => row.version === version)
  if (found) return found
  throw new Fault(
    'NOT_FOUND',
    rows.length === 0 ? `Task ${task} has no model yet` : `Task ${task} has no version ${version}; it has ${rows.map((row) => row.version).join(', ')}`,
    { task, version },
  )
}

export interface Championship {
  readonly version: string
  /** It took its place again. */
  readonly is_rollback: boolean
}

/**
 * Who is champion, and who would be it again one after the other: a promotion puts its version on top, a rollback takes off what
 * lies above its own. `history`: the oldest first.
 */
export function championsLeft(history: readonly Championship[]): string[] {
  const left: string[] = []
  for (const { version, is_rollback: isRollback } of history) {
    const at = left.indexOf(version)
    if (isRollback && at > 0) left.splice(0, at)
    else if (at !== 0) left.unshift(version)
  }
  return left
}

/** As `championsLeft` has it. */
export async function selectChampions(sql: Sql, task: string): Promise<string[]> {
  return championsLeft((await sql.query<Championship>("select version, is_rollback from promotions where task = $1 and alias = 'champion' order by id", [task])).rows)
}

/** A transaction in which nobody else changes who serves a task: what is read there still holds when it is acted on. */
export function decideRoles<Result>(pool: Pool, task: string, decide: (sql: Sql) => Promise<Result>): Promise<Result> {
  return inTransaction(pool, async (sql) => {
    await sql.query('select pg_advisory_xact_lock(hashtext($1))', [`frameloop.promotions.${task}`])
    return decide(sql)
  })
}

export interface Promoted {
  readonly version: string
  /** The version that served until now, or undefined. */
  readonly before: string | undefined
}

/** Makes a version champion, or gives it another role, on record; inside `decideRoles`. Throws `NOT_FOUND`, and `REQUEST_INVALID` for who is champion already. */
export async function promote(sql: Sql, task: string, version: string, role: Role, by: string, reason: string): Promise<Promoted> {
  const row = await selectVersion(sql, task, version)
  const [before] = await selectChampions(sql, task)
  if (before === version && role.alias === 'champion') throw new Fault('REQUEST_INVALID', `Version ${version} of task ${task} is champion already`)
  const model: ModelVersion = {
    task,
    version,
    modelName: row.model_name,
    runId: row.run_id,
    digest: row.digest,
    artifactPath: row.artifact_path,
    preprocessing: row.preprocessing,
    datasetDigest: row.dataset_digest,
  }
  await recordPromotion(sql, model, role, by, reason)
  return { version, before }
}

/** Makes the version champion that was it before the present one; inside `decideRoles`. Throws `NOT_FOUND` when there was none. */
export async function rollback(sql: Sql, task: string, by: string, reason: string): Promise<Promoted> {
  const [now, last] = await selectChampions(sql, task)
  if (last === undefined) throw new Fault('NOT_FOUND', `Task ${task} has had no other champion${now ? ` before version ${now}` : ''}`, { task })
  return promote(sql, task, last, { alias: 'champion', isRollback: true }, by, reason || `rolled back from version ${now}`)
}

/** Nobody serves under the alias any more, on record; inside `decideRoles`. Throws `REQUEST_INVALID` for the champion: a task that answers must go on answering. */
export async function retire(sql: Sql, task: string, alias: Alias, by: string, reason: string): Promise<void> {
  if (alias === 'champion') throw new Fault('REQUEST_INVALID', 'A champion is replaced, not retired: promote another version')
  const nobody: ModelVersion = { task, version: '', modelName: '', runId: '', digest: '', artifactPath: '', preprocessing: '', datasetDigest: '' }
  await recordPromotion(sql, nobody, { alias }, by, reason)
}

/** MLflow's aliases follow the promotion log, in their own time: what it was told last is on record. Throws `MLFLOW_UNAVAILABLE`. */
export async function followAliases(sql: Sql, mlflow: Pick<Mlflow, 'setAlias' | 'removeAlias'>): Promise<void> {
  const { rows } = await sql.query<{ task: string; alias: Alias; version: string; model_name: string }>(
    `select r.task, r.alias, r.version, coalesce(m.model_name, t.model_name) as model_name
     from roles_now r left join model_versions m using (task, version) left join mlflow_aliases t on t.task = r.task and t.alias = r.alias
     where r.version <> coalesce(t.version, '')`,
  )
  const failures: unknown[] = []
  for (const { task, alias, version, model_name: name } of rows) {
    try {
      await (version === '' ? mlflow.removeAlias(name, alias) : mlflow.setAlias(name, alias, version))
    } catch (thrown) {
      // a version that somebody removed in MLflow: the others follow all the same
      failures.push(thrown)
      continue
    }
    await sql.query(
      `insert into mlflow_aliases (task, alias, model_name, version) values ($1, $2, $3, $4)
       on conflict (task, alias) do update set model_name = excluded.model_name, version = excluded.version, told_at = now()`,
      [task, alias, name, version],
    )
  }
  if (failures.length > 0) throw failures[0]
}
