/** `frameloop keys add | list | revoke`: who may ask inference. */
import { addKey, type NewKey, type Scope, type Verb, verbs } from '@frameloop/cloud/serve/access'
import { Fault } from '@frameloop/kit/fault'
import type { Pool } from '@frameloop/kit/postgres'
import { isName } from '@frameloop/schemas/ids'

export interface KeyFlags {
  readonly verbs?: string
  readonly cameras?: string
  readonly tasks?: string
  readonly rate?: string
}

const listOf = (text: string | undefined): string[] =>
  (text ?? '')
    .split(',')
    .map((part) => part.trim())
    .filter(Boolean)

/** Throws `REQUEST_INVALID`. */
function scopeOf(flags: KeyFlags): Scope {
  // an empty list means everything: nobody says that by naming nothing
  for (const [name, said] of Object.entries({ verbs: flags.verbs, cameras: flags.cameras, tasks: flags.tasks }))
    if (said !== undefined && listOf(said).length === 0) throw new Fault('REQUEST_INVALID', `--${name} names nothing; leave it out for a key that reaches all of them`)
  const scope = { verbs: listOf(flags.verbs), cameras: listOf(flags.cameras), tasks: listOf(flags.tasks) }
  const unknown = scope.verbs.filter((verb) => !verbs.includes(verb as Verb))
  if (unknown.length > 0) throw new Fault('REQUEST_INVALID', `There is no verb ${unknown.join(', ')}; there are ${verbs.join(', ')}`)
  const wrong = [...scope.cameras, ...scope.tasks].filter((name) => !isName(name))
  if (wrong.length > 0) throw new Fault('REQUEST_INVALID', `${wrong.join(', ')} cannot be the name of a camera or task`)
  return scope as Scope
}

export function makeKey(pool: Pool, name: string, flags: KeyFlags): Promise<NewKey> {
  const rate = flags.rate === undefined ? undefined : Number(flags.rate)
  if (rate !== undefined && !(rate > 0 && Number.isFinite(rate))) throw new Fault('REQUEST_INVALID', `A rate is a number over 0, not ${flags.rate}`)
  return addKey(pool, name, scopeOf(flags), rate)
}

interface Row {
  readonly key_id: string
  readonly name: string
  readonly scope: Scope
  readonly rate: number | null
  readonly made_at: Date
  readonly revoked_at: Date | null
}

export async function listKeys(pool: Pool): Promise<Row[]> {
  return (await pool.query<Row>('select key_id, name, scope, rate, made_at, revoked_at from api_keys order by made_at')).rows
}

export function showKeys(rows: readonly Row[]): string {
  if (rows.length === 0) return 'There is no key yet; `npx frameloop keys add NAME` makes one.'
  const named = (what: string, list: readonly string[]): string => (list.length === 0 ? `all ${what}` : `${what} ${list.join(', ')}`)
  return rows
    .map(({ key_id, name, scope, rate, made_at, revoked_at }) => {
      const reach = [named('verbs', scope.verbs), named('cameras', scope.cameras), named('tasks', scope.tasks), rate === null ? 'any rate' : `${rate} a second`]
      return `${key_id}  ${name.padEnd(16)} ${revoked_at ? `revoked ${revoked_at.toISOString()}` : reach.join('; ')}  (made ${made_at.toISOString()})`
    })
    .join('\n')
}

/** Throws `REQUEST_INVALID` when there is none. */
export async function revokeKey(pool: Pool, keyId: string): Promise<void> {
  const { rowCount } = await pool.query('update api_keys set revoked_at = now() where key_id = $1 and revoked_at is null', [keyId])
  if (!rowCount) throw new Fault('REQUEST_INVALID', `There is no key ${keyId} that holds; \`frameloop keys list\` shows them`)
}
