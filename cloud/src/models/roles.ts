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
}

/** What a new champion gets, unless somebody insists on it. */
export const probationTime: Ms = 600_000

/** Writes the promotion and tells models.changed, in the caller's transaction. */
export async function recordPromotion(sql: Sql, model: ModelVersion, { alias, share = 1, probation }: Role, decidedBy: string, reason: string): Promise<void> {
  await sql.query(
    "insert into promotions (task, alias, version, decided_by, reason, share, probation_until) values ($1, $2, $3, $4, $5, $6, now() + $7::double precision * interval '1 ms')",
    [model.task, alias, model.version, decidedBy, reason, share, probation ?? null],
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

/** The champions a task has had, newest first. */
export async function selectChampions(sql: Sql, task: string): Promise<string[]> {
  const { rows } = await sql.query<{ version: string }>("select version from promotions where task = $1 and alias = 'champion' order by id desc", [task])
  return rows.map(({ version }) => version)
}

/** Until the transaction ends nobody else changes who serves a task. */
export async function lockRoles(sql: Sql, task: string): Promise<void> {
  await sql.query('select pg_advisory_xact_lock(hashtext($1))', [`frameloop.promotions.${task}`])
}

export interface Promoted {
  readonly version: string
  /** The version that served until now, or undefined. */
  readonly before: string | undefined
}

/** Makes a version champion, or gives it another role, on record. Throws `NOT_FOUND`, and `REQUEST_INVALID` for who is champion already. */
export async function promote(pool: Pool, mlflow: Pick<Mlflow, 'setAlias'>, task: string, version: string, role: Role, by: string, reason: string): Promise<Promoted> {
  const promoted = await inTransaction(pool, async (client) => {
    await lockRoles(client, task)
    const row = await selectVersion(client, task, version)
    const [before] = await selectChampions(client, task)
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
    await recordPromotion(client, model, role, by, reason)
    return { version, before, modelName: row.model_name }
  })
  await mlflow.setAlias(promoted.modelName, role.alias, version)
  return promoted
}

/** Makes the version champion that was it before the present one. Throws `NOT_FOUND` when there was none. */
export async function rollback(pool: Pool, mlflow: Pick<Mlflow, 'setAlias'>, task: string, by: string, reason: string): Promise<Promoted> {
  const [now, ...earlier] = await selectChampions(pool, task)
  const last = earlier.find((version) => version !== now)
  if (last === undefined) throw new Fault('NOT_FOUND', `Task ${task} has had no other champion${now ? ` than version ${now}` : ''}`, { task })
  return promote(pool, mlflow, task, last, { alias: 'champion' }, by, reason || `rolled back from version ${now}`)
}

/** Nobody serves under the alias any more, on record. Throws `REQUEST_INVALID` for the champion: a task that answers must go on answering. */
export async function retire(pool: Pool, task: string, alias: Alias, by: string, reason: string): Promise<void> {
  if (alias === 'champion') throw new Fault('REQUEST_INVALID', 'A champion is replaced, not retired: promote another version')
  const nobody: ModelVersion = { task, version: '', modelName: '', runId: '', digest: '', artifactPath: '', preprocessing: '', datasetDigest: '' }
  await inTransaction(pool, async (client) => {
    await lockRoles(client, task)
    await recordPromotion(client, nobody, { alias }, by, reason)
  })
}
