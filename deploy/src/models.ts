/** `models list | show`: the versions there are, and how each of them serves. */
import { selectVersion } from '@frameloop/cloud/models/roles'
import type { Pool } from '@frameloop/kit/postgres'

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
    `select m.task, m.version, coalesce(string_agg(s.alias || case when s.probation_until > now() then ' on probation' else '' end, ', '), '') as alias, m.created_at, m.metrics, m.dataset_digest, m.run_id
     from model_versions m left join roles_now s on s.task = m.task and s.version = m.version
     group by m.task, m.version order by m.task, m.created_at`,
  )
  return rows
}

export function showModels(models: readonly ListedModel[]): string {
  if (models.length === 0) return 'No model has been trained yet.'
  return models
    .map(
      ({ task, version, alias, created_at, metrics, dataset_digest, run_id }) =>
        `${task} version ${version.padEnd(3)} ${alias.padEnd(10)} ${metrics.n ? `balanced accuracy ${((metrics.balancedAccuracy ?? 0) * 100).toFixed(1)} % of ${metrics.n} held out` : 'not judged: too few passages'}  ${created_at.toISOString()}  run ${run_id}  dataset ${dataset_digest.slice(0, 12)}`,
    )
    .join('\n')
}

/** One version with its figures, and when it served. */
export async function showModel(pool: Pool, task: string, version: string): Promise<object> {
  const model = await selectVersion(pool, task, version)
  const promotions = await pool.query('select alias, decided_by, reason, decided_at, probation_until from promotions where task = $1 and version = $2 order by id', [task, version])
  return { ...model, promotions: promotions.rows }
}
