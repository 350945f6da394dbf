/** `models list | show | promote | rollback`. The promotion log in PostgreSQL is the truth; the event and MLflow's alias follow it. */
import { openMlflow } from '@frameloop/cloud/models/mlflow'
import { type Alias, type ModelVersion, recordPromotion } from '@frameloop/cloud/models/promote'
import { Fault } from '@frameloop/kit/fault'
import { inTransaction, type Pool, type Sql } from '@frameloop/kit/postgres'

export interface ListedModel {
  readonly task: string
  readonly version: string
  readonly alias: string
  readonly created_at: Date
  readonly metrics: { readonly balancedAccuracy?: number; readonly n?: number }
  readonly dataset_digest: string
  readonly run_id: string
}

export async function listModels(pool: Pool): Promise<ListedModel[]> {
  const { rows } = await pool.query<ListedModel>(
    `with serving as (select distinct on (task, alias) task, alias, version from promotions order by task, alias, id desc)
     select m.task, m.version, coalesce(string_agg(s.alias, ', '), '') as alias, m.created_at, m.metrics, m.dataset_digest, m.run_id
     from model_versions m left join serving s on s.task = m.task and s.version = m.version
     group by m.task, m.version order by m.task, m.created_at`,
  )
  return rows
}

export function showModels(models: readonly ListedModel[]): string {
  if (models.length === 0) return 'No model has been trained yet.'
  return models
    .map(
      ({ task, version, alias, created_at, metrics, dataset_digest, run_id }) =>
        `${task} version ${version.padEnd(3)} ${alias.padEnd(10)} balanced accuracy ${((metrics.balancedAccuracy ?? 0) * 100).toFixed(1)} % of ${metrics.n ?? 0} held out  ${created_at.toISOString()}  run ${run_id}  dataset ${dataset_digest.slice(0, 12)}`,
    )
    .join('\n')
}

interface VersionRow {
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
async function selectVersion(sql: Sql, task: string, version: string): Promise<VersionRow> {
  const { rows } = await sql.query<VersionRow>('select * from model_versions where task = $1 order by created_at', [task])
  const found = rows.find((row) => row.version === version)
  if (found) return found
  throw new Fault(
    'NOT_FOUND',
    rows.length === 0 ? `Task ${task} has no model yet` : `Task ${task} has no version ${version}; it has ${rows.map((row) => row.version).join(', ')}`,
    { task, version },
  )
}

/** One version with its figures, and when it served. */
export async function showModel(pool: Pool, task: string, version: string): Promise<object> {
  const model = await selectVersion(pool, task, version)
  const promotions = await pool.query('select alias, decided_by, reason, decided_at from promotions where task = $1 and version = $2 order by id', [task, version])
  return { ...model, promotions: promotions.rows }
}

interface Promoted {
  readonly version: string
  /** The version that served until now, or undefined. */
  readonly before: string | undefined
}

async function selectChampions(sql: Sql, task: string): Promise<string[]> {
  const { rows } = await sql.query<{ version: string }>("select version from promotions where task = $1 and alias = 'champion' order by id desc", [task])
  return rows.map(({ version }) => version)
}

/** How a version serves: `share` is a challenger's. */
export interface Role {
  readonly alias: Alias
  readonly share?: number
}

/** Nobody serves under the alias any more, on record. Throws `REQUEST_INVALID` for the champion: a task that answers must go on answering. */
export async function retire(pool: Pool, task: string, alias: Alias, by: string): Promise<void> {
  if (alias === 'champion') throw new Fault('REQUEST_INVALID', 'A champion is replaced, not retired: promote another version')
  const nobody: ModelVersion = { task, version: '', modelName: '', runId: '', digest: '', artifactPath: '', preprocessing: '', datasetDigest: '' }
  await inTransaction(pool, (client) => recordPromotion(client, nobody, alias, by, 'retired by hand'))
}

/** Makes a version champion, or gives it another role, on record. */
export async function promote(
  pool: Pool,
  mlflowUrl: string,
  task: string,
  version: string,
  by: string,
  reason: string,
  { alias, share = 1 }: Role = { alias: 'champion' },
): Promise<Promoted> {
  const promoted = await inTransaction(pool, async (client) => {
    await client.query('select pg_advisory_xact_lock(hashtext($1))', [`frameloop.promotions.${task}`])
    const row = await selectVersion(client, task, version)
    const [before] = await selectChampions(client, task)
    if (before === version && alias === 'champion') throw new Fault('REQUEST_INVALID', `Version ${version} of task ${task} is champion already`)
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
    await recordPromotion(client, model, alias, by, reason, share)
    return { version, before, modelName: row.model_name }
  })
  await openMlflow(mlflowUrl).setAlias(promoted.modelName, alias, version)
  return promoted
}

/** Makes the version champion that was it before the present one. */
export async function rollback(pool: Pool, mlflowUrl: string, task: string, by: string, reason: string): Promise<Promoted> {
  const [now, ...earlier] = await selectChampions(pool, task)
  const last = earlier.find((version) => version !== now)
  if (last === undefined) throw new Fault('NOT_FOUND', `Task ${task} has had no other champion${now ? ` than version ${now}` : ''}`, { task })
  return promote(pool, mlflowUrl, task, last, by, reason || `rolled back from version ${now}`)
}
