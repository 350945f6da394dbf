/** Where the embedded stack lives: `.frameloop/` in the checkout, or FRAMELOOP_HOME. Ports, secrets and state that outlive a start. */
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Fault } from '@frameloop/kit/fault'

/** The checkout: two folders above this source, and above the build. */
export const root = resolve(fileURLToPath(new URL('../..', import.meta.url)))
/** Programs of frameloop itself, as `deploy/setup/build.mjs` made them. */
export const build = join(root, '.frameloop/build')
/** Programs that set-up fetched or built. */
export const tools = join(root, '.frameloop/tools')

export interface Home {
  readonly folder: string
  readonly logs: string
  path(...parts: readonly string[]): string
  /** A secret that is made at the first start and kept in a file of mode 0600. */
  secret(name: string): string
}

const usualFolder = (): string => process.env['FRAMELOOP_HOME'] || join(root, '.frameloop')

/** Makes what is missing of it. */
export function openHome(folder = usualFolder()): Home {
  const home = findHome(folder)
  // other users must be able to pass through, because PostgreSQL refuses to run as root
  mkdirSync(home.folder, { recursive: true, mode: 0o755 })
  mkdirSync(home.logs, { recursive: true })
  mkdirSync(home.path('secrets'), { recursive: true, mode: 0o700 })
  return home
}

/** To look at: nothing is made, and it may not be there. */
export function findHome(folder = usualFolder()): Home {
  const absolute = resolve(folder)
  return {
    folder: absolute,
    logs: join(absolute, 'logs'),
    path: (...parts) => join(absolute, ...parts),
    secret(name) {
      const file = join(absolute, 'secrets', name)
      if (!existsSync(file)) writeFileSync(file, randomBytes(18).toString('base64url'), { mode: 0o600 })
      return readFileSync(file, 'utf8')
    },
  }
}

/** Written whole or not at all. */
export function writeState(home: Home, name: string, value: unknown): void {
  const file = home.path(name)
  writeFileSync(`${file}.part`, `${JSON.stringify(value, null, 2)}\n`, { mode: 0o600 })
  renameSync(`${file}.part`, file)
}

export function readState<State>(home: Home, name: string): State | undefined {
  try {
    return JSON.parse(readFileSync(home.path(name), 'utf8')) as State
  } catch {
    return undefined
  }
}

export function isFree(port: number): Promise<boolean> {
  return new Promise((done) => {
    const server = createServer()
    server.once('error', () => done(false))
    server.listen(port, '127.0.0.1', () => server.close(() => done(true)))
  })
}

/** Names of ports → numbers: those of the last start while they are free, others from a range that leaves port + 10000 free too. */
export async function choosePorts(home: Home, names: readonly string[]): Promise<Readonly<Record<string, number>>> {
  const last = readState<Record<string, number>>(home, 'ports.json') ?? {}
  const ports: Record<string, number> = {}
  const taken = new Set<number>()
  const usable = async (port: number): Promise<boolean> => !taken.has(port) && (await isFree(port)) && (await isFree(port + 10_000))
  // where the system takes the ports of those who connect from, one that is free now may not be when it is wanted
  let next = 20_000 + Math.floor(Math.random() * 2_500)
  for (const name of names) {
    const before = last[name]
    let port = before !== undefined && (await usable(before)) ? before : undefined
    while (port === undefined) {
      next += 1
      if (next > 40_000) throw new Fault('PORT_TAKEN', 'No free port was found between 20000 and 40000')
      if (await usable(next)) port = next
    }
    ports[name] = port
    taken.add(port)
  }
  writeState(home, 'ports.json', ports)
  return ports
}

/** The port a person asked for. Throws `PORT_TAKEN`. */
export async function wantPort(port: number, setting: string): Promise<number> {
  if (await isFree(port)) return port
  throw new Fault('PORT_TAKEN', `Port ${port} (${setting}) is taken by another program`, { port })
}
