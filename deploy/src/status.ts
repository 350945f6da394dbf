/** What runs, how large it is, who serves: for people and, as JSON, for programs. */
import { readdirSync, readFileSync } from 'node:fs'
import { isDatabaseTransient, openPool } from '@frameloop/kit/postgres'
import { isSameProcess, statFields } from '@frameloop/kit/process-identity'
import { showBytes } from '@frameloop/kit/units'
import { type Home, readState } from './home.ts'
import type { Remembered } from './supervisor.ts'
import { needStack } from './up.ts'

export interface Status {
  readonly ready: boolean
  readonly console?: string
  readonly endpoints: Readonly<Record<string, string>>
  readonly processes: readonly { readonly name: string; readonly pid: number; readonly state: string; readonly rssBytes: number }[]
  readonly models: readonly { readonly task: string; readonly alias: string; readonly version: string }[]
}

/** Process id → its children, of everything that runs now. */
function childrenByParent(): ReadonlyMap<number, readonly number[]> {
  const children = new Map<number, number[]>()
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue
    const parent = Number(statFields(Number(entry))[1])
    children.set(parent, [...(children.get(parent) ?? []), Number(entry)])
  }
  return children
}

/** Resident memory of a process and all its descendants. */
function residentBytes(pid: number, children: ReadonlyMap<number, readonly number[]>): number {
  let own = 0
  try {
    own = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
  return own + (children.get(pid) ?? []).reduce((total, child) => total + residentBytes(child, children), 0)
}

export async function status(home: Home): Promise<Status> {
  const stack = needStack(home)
  const started = readState<Remembered[]>(home, 'pids.json') ?? []
  const pids = started.filter(({ pid, ticks }) => isSameProcess(pid, ticks))
  const children = process.platform === 'linux' ? childrenByParent() : undefined
  const processes = await Promise.all(
    pids.map(async ({ name, pid, isReady }) => {
      const url = stack.health[name]
      // our own processes say it themselves; of a backing service the supervisor knows, by a real operation
      const state =
        url === undefined
          ? isReady
            ? 'ready'
            : 'starting'
          : await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(2_000) }).then(
              async (answer) => (answer.ok ? (((await answer.json()) as { degraded?: object }).degraded ? 'degraded' : 'ready') : 'not ready'),
              () => 'not answering',
            )
      return { name, pid, state, rssBytes: children ? residentBytes(pid, children) : 0 }
    }),
  )
  const pool = openPool(stack.environment['DATABASE_URL'] ?? '', 'status', 1)
  try {
    const known = await pool
      .query<{ task: string; alias: string; version: string }>("select task, alias, version from roles_now where version <> '' order by task, alias")
      .catch((thrown: unknown) => {
        // it is asked most when something is down
        if (!isDatabaseTransient(thrown)) throw thrown
      })
    const ready = known !== undefined && pids.length === started.length && processes.every(({ state }) => state === 'ready' || state === 'degraded')
    return { ready, console: stack.console, endpoints: stack.endpoints, processes, models: known?.rows ?? [] }
  } finally {
    await pool.end()
  }
}

export function showStatus(found: Status): string {
  const rows = found.processes.map(({ name, pid, state, rssBytes }) => `  ${name.padEnd(12)} ${String(pid).padStart(8)}  ${state.padEnd(14)} ${showBytes(rssBytes)}`)
  const models = found.models.map(({ task, alias, version }) => `  ${task}: version ${version} is ${alias}`)
  return [
    `${found.ready ? 'frameloop is ready' : 'frameloop is not ready'}: ${found.console ?? ''}`,
    ...rows,
    ...(models.length > 0 ? ['models', ...models] : []),
    'endpoints',
    ...Object.entries(found.endpoints).map(([name, url]) => `  ${name.padEnd(14)} ${url}`),
  ].join('\n')
}
