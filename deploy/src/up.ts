/**
 * `frameloop up`: backing services side by side, then what must exist, then the processes; runs until Ctrl-C.
 *
 *   postgres ─┬─▶ registry ─┬─▶ topics, schemas ─▶ agent, validate, extract, features, catalog, …
 *             └─▶ mlflow    │
 *   kafka ──────────────────┤
 *   s3 ────────▶ buckets ───┘
 */
import { createPublicKey } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { IngestSettings, ServeSettings } from '@frameloop/cloud/config'
import type { AgentSettings } from '@frameloop/edge-agent/config'
import { readConfig, variableName } from '@frameloop/kit/config'
import { Fault } from '@frameloop/kit/fault'
import type { NotReady } from '@frameloop/kit/health'
import { type Log, openLog } from '@frameloop/kit/log'
import { openObjectStore } from '@frameloop/kit/object-store'
import { openPool } from '@frameloop/kit/postgres'
import { isSameProcess, startTicks } from '@frameloop/kit/process-identity'
import { showMs } from '@frameloop/kit/units'
import { ingestAgentId } from '@frameloop/schemas/ids'
import { bucketName } from '@frameloop/schemas/object-keys'
import { makeKeys } from '@frameloop/schemas/signature'
import { ChainSettings } from '@frameloop/stream-processors/config'
import type { ZoneShape } from '@frameloop/stream-processors/features/prepare'
import { addAgentKey } from './agents.ts'
import { endHangingTransactions } from './hanging-transactions.ts'
import { build, choosePorts, type Home, readState, root, wantPort, writeState } from './home.ts'
import { putZoneFile } from './label-file.ts'
import { type BrokerExtras, mlflowProgram, prepareKafka, registryProgram, s3Program } from './parts.ts'
import { ensureDatabases, preparePostgres } from './postgres.ts'
import { probeChain } from './probe.ts'
import { migrate, provisionBuckets, provisionSchemas, provisionTopics, TopicSettings } from './provision.ts'
import { endLeftovers, type Program, Supervisor } from './supervisor.ts'

export interface CameraOption {
  readonly cameraId: string
  readonly address: string
  readonly framesPerSecond?: number
}

export interface UpOptions {
  readonly cameras: readonly CameraOption[]
  /** Zones to set before the first frame is captured. */
  readonly zones: readonly { readonly cameraId: string; readonly task: string; readonly zones: readonly ZoneShape[] }[]
  /** Port of the page; a free one is chosen when it is not stated and the usual one is taken. */
  readonly consolePort?: number
  readonly say: (text: string) => void
}

/** What other commands need to know of a running stack; credentials stay in files of mode 0600. */
export interface StackState {
  readonly supervisor: SupervisorId
  readonly startedAt: string
  readonly console: string
  readonly endpoints: Readonly<Record<string, string>>
  /** With credentials; the file is readable by its owner only. */
  readonly environment: Readonly<Record<string, string>>
  readonly health: Readonly<Record<string, string>>
}

export function runningStack(home: Home): StackState | undefined {
  const state = readState<StackState>(home, 'stack.json')
  return state && isSameProcess(state.supervisor.pid, state.supervisor.ticks) ? state : undefined
}

interface SupervisorId {
  readonly pid: number
  readonly ticks: string
}

/** Whoever runs the processes here, or is starting or stopping them. */
export function runningSupervisor(home: Home): SupervisorId | undefined {
  const supervisor = readState<SupervisorId>(home, 'supervisor.json')
  return supervisor && isSameProcess(supervisor.pid, supervisor.ticks) ? supervisor : undefined
}

/** Throws `STACK_NOT_RUNNING`. */
export function needStack(home: Home): StackState {
  const state = runningStack(home)
  if (!state) throw new Fault('STACK_NOT_RUNNING', 'frameloop does not run here')
  return state
}

export const usualBucketPrefix = 'frameloop'
/** The agent that is started here. */
const ownAgentId = 'agent-1'
/** Where the agent's configuration takes an environment variable. */
const environmentText = (name: string): string => `\${${name}}`
const partNames = ['postgres', 'kafka', 'kafkaController', 'registry', 'registryManagement', 's3', 's3Master', 's3Volume', 's3Filer', 's3Admin', 's3Metrics', 'mlflow'] as const
export const processNames = ['agent', 'validate', 'extract', 'features', 'catalog', 'archive', 'labels', 'train', 'serve', 'ingest', 'watch', 'console'] as const

/**
 * Of programs through which thousands of small records or requests go each second: where short-lived objects have room for what
 * is under way, they are not copied around (a fifth of a small record's CPU time).
 */
export const stageFlags = ['--max-semi-space-size=32']

export interface RunningStack {
  readonly state: StackState
  readonly supervisor: Supervisor
}

/** The agent's configuration: JSON, which is YAML; the keys come by its environment. */
function agentYaml(
  home: Home,
  cameras: readonly CameraOption[],
  at: {
    readonly isSigning: boolean
    readonly brokers: string
    readonly registryUrl: string
    readonly s3Endpoint: string
    readonly s3Region: string
    readonly bucketPrefix: string
    readonly port: number
  },
): string {
  const config: Partial<AgentSettings> = {
    agent: ownAgentId,
    ...(at.isSigning ? { signingKey: environmentText('SIGNING_KEY') } : {}),
    port: at.port,
    spool: { folder: home.path('spool'), capacity: '2 GB', keepFree: '200 MB' },
    kafka: { brokers: at.brokers.split(',') },
    registry: { url: at.registryUrl },
    s3: {
      endpoint: at.s3Endpoint,
      region: at.s3Region,
      accessKeyId: environmentText('AWS_ACCESS_KEY_ID'),
      secretAccessKey: environmentText('AWS_SECRET_ACCESS_KEY'),
      bucketPrefix: at.bucketPrefix,
    },
    cameras: cameras.map(({ cameraId, address, framesPerSecond }) => ({ id: cameraId, address, ...(framesPerSecond ? { framesPerSecond } : {}) })),
  }
  return JSON.stringify(config, null, 2)
}

/** Starts everything; on failure, or when the signal comes first, nothing is left running. Throws `STACK_RUNS`, and the signal's reason. */
export async function up(home: Home, options: UpOptions, signal: AbortSignal): Promise<RunningStack> {
  const { say } = options
  const other = runningSupervisor(home)
  if (other) throw new Fault('STACK_RUNS', `frameloop is being started or stopped here by process ${other.pid}`, { pid: other.pid })
  writeState(home, 'supervisor.json', { pid: process.pid, ticks: startTicks(process.pid) } satisfies SupervisorId)
  const leftovers = await endLeftovers(home)
  if (leftovers.length > 0) say(`ended what an earlier start left behind: ${leftovers.join(', ')}`)
  signal.throwIfAborted()
  const supervisor = new Supervisor(home, say)
  const asked = new Promise<never>((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }))
  try {
    return await Promise.race([startAll(home, options, supervisor), asked])
  } catch (thrown) {
    await supervisor.stop()
    throw thrown
  }
}

async function startAll(home: Home, options: UpOptions, supervisor: Supervisor): Promise<RunningStack> {
  const { say } = options
  const log = openLog('stack', 'warn')
  const own = process.env
  const ports = await choosePorts(home, [...partNames, ...processNames.map((name) => `process-${name}`)])
  const port = (name: string): number => ports[name] ?? 0
  // a proxy before a service of ours, for those who want to see it go wrong: {"kafka": 19092}
  const via = JSON.parse(own['FRAMELOOP_VIA'] ?? '{}') as Readonly<Record<string, number>>
  // further settings of the broker: a listener with TLS, users and rights
  const brokerExtras = JSON.parse(own['FRAMELOOP_BROKER'] ?? '{}') as BrokerExtras
  const reachedAt = (name: string): number => via[name] ?? port(name)
  const consolePort = await chooseConsolePort(options.consolePort)
  const start = async (program: Program): Promise<void> => say(`  ${program.name.padEnd(10)} ready after ${showMs(await supervisor.start(program))}`)

  const database = own['DATABASE_URL'] ? undefined : await preparePostgres(home, port('postgres'))
  const databaseUrl = own['DATABASE_URL'] || database?.urlOf('frameloop') || ''
  // in a database server of somebody's own the registry and MLflow get databases beside ours: their tables have names like ours
  const besideOurs = (name: string): string => `${new URL(databaseUrl).pathname.slice(1)}_${name}`
  const urlOf = (name: string): string => database?.urlOf(name) ?? Object.assign(new URL(databaseUrl), { pathname: `/${besideOurs(name)}` }).href
  const brokers = own['KAFKA_BROKERS'] || `127.0.0.1:${reachedAt('kafka')}`
  const registryUrl = own['SCHEMA_REGISTRY_URL'] || `http://127.0.0.1:${reachedAt('registry')}/apis/ccompat/v7`
  const bucketPrefix = own['BUCKET_PREFIX'] || usualBucketPrefix
  const s3Region = own['S3_REGION'] || 'us-east-1'
  const s3Endpoint = own['S3_ENDPOINT'] || `http://127.0.0.1:${reachedAt('s3')}`
  const mlflowUrl = own['MLFLOW_TRACKING_URI'] || `http://127.0.0.1:${port('mlflow')}`
  const identity = (name: string) => ({ accessKeyId: `frameloop-${name}`, secretAccessKey: home.secret(`s3-${name}`) })
  const cloudIdentity = own['S3_ENDPOINT'] ? { accessKeyId: own['AWS_ACCESS_KEY_ID'] ?? '', secretAccessKey: own['AWS_SECRET_ACCESS_KEY'] ?? '' } : identity('cloud')
  const edgeIdentity = own['S3_ENDPOINT'] ? cloudIdentity : identity('edge')
  const store = openObjectStore({ s3Endpoint, s3Region, awsAccessKeyId: cloudIdentity.accessKeyId, awsSecretAccessKey: cloudIdentity.secretAccessKey })

  say('backing services:')
  const withDatabase = (async () => {
    if (database) {
      await start(database.program)
      await ensureDatabases(database.urlOf('postgres'), ['frameloop', 'registry', 'mlflow'])
    } else await ensureDatabases(databaseUrl, [...(own['SCHEMA_REGISTRY_URL'] ? [] : ['registry']), ...(own['MLFLOW_TRACKING_URI'] ? [] : ['mlflow'])].map(besideOurs))
    const registry = own['SCHEMA_REGISTRY_URL'] ? undefined : start(registryProgram(port('registry'), port('registryManagement'), registryDatabase(urlOf('registry'))))
    const mlflow = own['MLFLOW_TRACKING_URI']
      ? undefined
      : start(mlflowProgram(port('mlflow'), urlOf('mlflow'), { endpoint: s3Endpoint, region: s3Region, identity: cloudIdentity, bucket: bucketName(bucketPrefix, 'models') }))
    // whoever fails first is told; this one is waited for later
    mlflow?.catch(() => {})
    await Promise.all([migrate(databaseUrl, log), registry])
    return { mlflow }
  })()
  const kafka = own['KAFKA_BROKERS']
    ? undefined
    : prepareKafka(home, port('kafka'), port('kafkaController'), reachedAt('kafka'), brokerExtras).then((program) =>
        start({ ...program, afterReady: (signal) => mendTransactions(brokers, log, say, signal) }),
      )
  const objects = (async () => {
    if (!own['S3_ENDPOINT']) {
      await start(
        s3Program(
          home,
          { s3: port('s3'), master: port('s3Master'), volume: port('s3Volume'), filer: port('s3Filer'), admin: port('s3Admin'), metrics: port('s3Metrics') },
          { cloud: cloudIdentity, edge: edgeIdentity },
          bucketName(bucketPrefix, 'raw'),
        ),
      )
    }
    await provisionBuckets(store, bucketPrefix)
  })()
  const [{ mlflow }] = await Promise.all([withDatabase, kafka, objects])
  await provisionTopics(brokers, readConfig(TopicSettings, own), log)
  await provisionSchemas(registryUrl)
  store.close()

  const common = { KAFKA_BROKERS: brokers, SCHEMA_REGISTRY_URL: registryUrl, S3_ENDPOINT: s3Endpoint, S3_REGION: s3Region, BUCKET_PREFIX: bucketPrefix }
  const cloud = {
    ...common,
    DATABASE_URL: databaseUrl,
    AWS_ACCESS_KEY_ID: cloudIdentity.accessKeyId,
    AWS_SECRET_ACCESS_KEY: cloudIdentity.secretAccessKey,
    MLFLOW_TRACKING_URI: mlflowUrl,
    MODEL_CACHE_FOLDER: home.path('models'),
  }
  const edge = {
    ...common,
    AWS_ACCESS_KEY_ID: edgeIdentity.accessKeyId,
    AWS_SECRET_ACCESS_KEY: edgeIdentity.secretAccessKey,
  }
  const signing = await makeSigners(home, databaseUrl, [ingestAgentId, ...(options.cameras.length > 0 ? [ownAgentId] : [])])
  const agentConfig = home.path('agent.yaml')
  if (options.cameras.length > 0)
    writeFileSync(
      agentConfig,
      agentYaml(home, options.cameras, { isSigning: signing.has(ownAgentId), brokers, registryUrl, s3Endpoint, s3Region, bucketPrefix, port: port('process-agent') }),
      { mode: 0o600 },
    )
  const portOf = (name: string): number => (name === 'console' ? consolePort : port(`process-${name}`))
  const health: Record<string, string> = Object.fromEntries(processNames.map((name) => [name, `http://127.0.0.1:${portOf(name)}`]))
  const processOf = (name: string, program: string, args: readonly string[], environment: Readonly<Record<string, string>>): Program => ({
    name,
    command: process.execPath,
    args: ['--enable-source-maps', ...(program === 'processor' || program === 'serve' ? stageFlags : []), join(build, `${program}.mjs`), ...args],
    cwd: root,
    env: { ...environment, PORT: String(portOf(name)), TF_CPP_MIN_LOG_LEVEL: '2', NODE_NO_WARNINGS: '1' },
    ready: async () => {
      const response = await fetch(`${health[name]}/readyz`, { signal: AbortSignal.timeout(2_000) })
      if (!response.ok) throw new Error(Object.values(((await response.json()) as { waiting: NotReady }).waiting).join(', '))
      return true
    },
  })
  say('processes:')
  // settings of their own, such as CLIP_FRAMES or API_KEYS, are handed on; where they listen and what they are called is ours to say
  const stage = (name: string): Program => processOf(name, 'processor', [name], { ...ownOf(ChainSettings), ...cloud })
  const ofCloud = (name: string): Program => processOf(name, name, [], { ...ownOf(ServeSettings), ...cloud })
  // zones must be known before the first frame is prepared
  const zones = start(ofCloud('labels')).then(async () => {
    for (const { cameraId, task, zones: list } of options.zones) await putZoneFile(health['labels'] ?? '', cameraId, task, list)
    await start(stage('features'))
  })
  const page = processOf('console', 'console', [], {
    ...ownOf(ServeSettings),
    SERVE_API_KEY: own['SERVE_API_KEY'] ?? '',
    ...cloud,
    SERVE_URL: health['serve'] ?? '',
    HEALTH_URLS: JSON.stringify(health),
  })
  const others = ['validate', 'extract', 'catalog', 'archive'].map(stage)
  const agent =
    options.cameras.length > 0
      ? zones.then(() => start(processOf('agent', 'agent', ['run', '--config', agentConfig], { ...edge, SIGNING_KEY: signing.get(ownAgentId) ?? '' })))
      : undefined
  await Promise.all([
    ...others.map(start),
    zones,
    agent,
    start(ofCloud('serve')),
    start(page),
    start(processOf('ingest', 'ingest', [], { SIGNING_KEY: signing.get(ingestAgentId) ?? '', ...ownOf(IngestSettings), ...cloud })),
    start(ofCloud('watch')),
    Promise.resolve(mlflow).then(() => start(ofCloud('train'))),
  ])

  say(`  a probe frame was prepared after ${showMs(await probeChain(health['ingest'] ?? '', databaseUrl, say))}`)

  const withoutCredentials = (url: string): string => url.replace(/\/\/[^@/]*@/, '//')
  const state: StackState = {
    console: health['console'] ?? '',
    supervisor: { pid: process.pid, ticks: startTicks(process.pid) },
    startedAt: new Date().toISOString(),
    endpoints: {
      kafka: brokers,
      schemaRegistry: registryUrl,
      s3: s3Endpoint,
      postgres: withoutCredentials(databaseUrl),
      mlflow: mlflowUrl,
      labels: health['labels'] ?? '',
      serve: health['serve'] ?? '',
      ingest: health['ingest'] ?? '',
      watch: health['watch'] ?? '',
    },
    environment: cloud,
    health,
  }
  writeState(home, 'stack.json', state)
  return { state, supervisor }
}

/**
 * Keys of those who announce here, made when REQUIRE_SIGNATURES first wants them; from then on the chain knows their public
 * halves, and they sign in every start. Throws `CONFIG_INVALID` where the chain knows another key by that name.
 */
async function makeSigners(home: Home, databaseUrl: string, names: readonly string[]): Promise<Map<string, string>> {
  const isWanted = /^(true|1)$/i.test(process.env['REQUIRE_SIGNATURES'] ?? '')
  const pool = openPool(databaseUrl, 'up', 1)
  const keys = new Map<string, string>()
  try {
    for (const name of names) {
      const file = home.path('secrets', `signing-${name}.pem`)
      const given = name === ingestAgentId ? process.env['SIGNING_KEY'] : undefined
      if (!given && !isWanted && !existsSync(file)) continue
      if (!given && !existsSync(file)) writeFileSync(file, makeKeys().privatePem, { mode: 0o600 })
      const pem = given || readFileSync(file, 'utf8')
      const own = createPublicKey(pem).export({ type: 'spki', format: 'pem' }).toString()
      const { rows } = await pool.query<{ public_key: string }>('select public_key from agent_keys where agent_id = $1', [name])
      const [known] = rows
      if (known && createPublicKey(known.public_key).export({ type: 'spki', format: 'pem' }).toString() !== own)
        throw new Fault('CONFIG_INVALID', `The chain knows another key of ${name} than ${given ? 'SIGNING_KEY' : file}; \`frameloop agents key ${name} FILE\` makes one known`)
      if (!known) await addAgentKey(pool, name, own)
      keys.set(name, pem)
    }
  } finally {
    await pool.end()
  }
  return keys
}

/** Of our own environment what such a process has a setting for. */
function ownOf(settings: { readonly properties: object }): Record<string, string> {
  const names = Object.keys(settings.properties)
    .filter((name) => !['host', 'port', 'instance'].includes(name))
    .map(variableName)
  return Object.fromEntries(names.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name] ?? '']])))
}

/** What the broker forgets, it forgets while it starts, or when it was too busy to hear from itself: more often in its first minute. */
async function mendTransactions(broker: string, log: Log, say: (text: string) => void, signal: AbortSignal): Promise<void> {
  for (let round = 0; !signal.aborted; round += 1) {
    const ended = await endHangingTransactions(broker, log).catch((thrown: unknown) => {
      // at first it may not answer yet
      log[round === 10 ? 'warn' : 'debug']({ err: thrown }, 'open transactions could not be read')
      return []
    })
    if (ended.length > 0) say(`kafka had forgotten a transaction; ended it in ${ended.join(', ')}`)
    await sleep(round < 30 ? 2_000 : 5_000, undefined, { signal }).catch(() => {})
  }
}

function registryDatabase(url: string) {
  const { hostname, port, username, password, pathname } = new URL(url)
  return { host: hostname, port: Number(port || 5432), name: pathname.slice(1), user: decodeURIComponent(username), password: decodeURIComponent(password) }
}

const usualConsolePort = 4600

/** Throws `PORT_TAKEN` for a port that was asked for and is taken. */
async function chooseConsolePort(wanted: number | undefined): Promise<number> {
  if (wanted !== undefined) return wantPort(wanted, '--port')
  for (let port = usualConsolePort; port < usualConsolePort + 100; port += 1) {
    if (
      await wantPort(port, '--port').then(
        () => true,
        () => false,
      )
    )
      return port
  }
  throw new Fault('PORT_TAKEN', `No port between ${usualConsolePort} and ${usualConsolePort + 99} is free for the page; choose one with --port`)
}
