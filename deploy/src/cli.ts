/** The `frameloop` command. Every sub-command says what to do next on failure, and exits 0 only when it did what was asked. */
import { createReadStream, existsSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Alias, decideRoles, probationTime, promote, retire, rollback } from '@frameloop/cloud/models/roles'
import { Fault, rootMessage, toError } from '@frameloop/kit/fault'
import { redact } from '@frameloop/kit/log'
import { objectStoreOf } from '@frameloop/kit/object-store'
import { isDatabaseTransient, openPool, type Pool, type Sql } from '@frameloop/kit/postgres'
import { isSameProcess } from '@frameloop/kit/process-identity'
import { type EpochMs, showMs } from '@frameloop/kit/units'
import { openCodec } from '@frameloop/schemas/codec'
import { isName } from '@frameloop/schemas/ids'
import { openRegistry } from '@frameloop/schemas/registry'
import { type Comparison, compareRebuilt, type Rebuilt, rebuildInPlace } from '@frameloop/stream-processors/catalog/rebuild'
import { Argument, Command, InvalidArgumentError } from 'commander'
import { addAgentKey, listAgents, showAgents, wantCameras } from './agents.ts'
import { type KeyFlags, listKeys, makeKey, revokeKey, showKeys } from './api-keys.ts'
import { type DeadLetterFlags, listDeadLetters, placeOf, redrive, showDeadLetter, showDeadLetters } from './dead-letters.ts'
import { runSimulatorTruth, simulatedZones, trainWhenPrepared } from './demo.ts'
import { follow, followAnswer, isTraceId, showOrigin, showWay } from './follow.ts'
import { findHome, type Home, openHome, readState, writeState } from './home.ts'
import { type Imported, importLabels, type LabelLine, parseLabels, parseZones, readNamed } from './label-file.ts'
import { exportPredictions, type TrainFlags, train } from './learning.ts'
import { openLimit, overdue, readLedger, showLedger } from './ledger.ts'
import { listModels, showModel, showModels } from './models.ts'
import { progressOf } from './progress.ts'
import { provision } from './provision.ts'
import { repair } from './repair.ts'
import { listReplays, type ReplayFlags, type ReplayStack, removeReplay, replay, showReplays } from './replay.ts'
import { showStatus, status } from './status.ts'
import { buildReference, listTasks, type PreprocessingFlags, type ReferenceFlags, setTask, showPreprocessing, showTasks } from './tasks.ts'
import { timeOf } from './times.ts'
import { type CameraOption, needStack, type RunningStack, runningStack, runningSupervisor, up, usualBucketPrefix } from './up.ts'
import { settleTime, showVerified, verify } from './verify.ts'

const print = (text: string): void => {
  process.stdout.write(`${text}\n`)
}

async function withDatabase<Result>(use: (pool: Pool) => Promise<Result>): Promise<Result> {
  const pool = openPool(setting('DATABASE_URL'), 'command', 2)
  try {
    return await use(pool)
  } catch (thrown) {
    throw isDatabaseTransient(thrown) ? new Fault('DATABASE_UNAVAILABLE', `The database does not answer: ${rootMessage(thrown)}`, {}, thrown) : thrown
  } finally {
    await pool.end()
  }
}

/** What the stack that runs here uses, and before it what our own environment says. */
function environment(): NodeJS.ProcessEnv {
  const stack = runningStack(findHome())?.environment
  // keys belong to the store they are for: those of somebody's shell say nothing about the one that runs here
  const { S3_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, ...own } = process.env
  const ownStore = !stack || S3_ENDPOINT ? { S3_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY } : {}
  return { ...stack, ...own, ...ownStore }
}

async function withStores<Result>(use: (stack: Omit<ReplayStack, 'requestedBy' | 'print' | 'signal'>) => Promise<Result>): Promise<Result> {
  const store = objectStoreOf(environment())
  try {
    return await withDatabase((pool) => use({ pool, store, brokers: setting('KAFKA_BROKERS'), registryUrl: setting('SCHEMA_REGISTRY_URL'), bucketPrefix: bucketPrefix() }))
  } finally {
    store.close()
  }
}

/** From the environment, else from the stack that runs here. Throws `STACK_NOT_RUNNING`. */
function setting(name: string): string {
  return process.env[name] ?? needStack(findHome()).environment[name] ?? ''
}

/** As every process has it. */
const bucketPrefix = (): string => environment()['BUCKET_PREFIX'] ?? usualBucketPrefix

/** The value of an option. */
function readNumber(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !Number.isFinite(value) || value < 0) throw new InvalidArgumentError('It is a number from 0, like 60.')
  return value
}

function readWhole(text: string): number {
  const value = readNumber(text)
  if (!Number.isSafeInteger(value)) throw new InvalidArgumentError('It is a whole number from 0, like 60.')
  return value
}

function readPort(text: string): number {
  const value = readWhole(text)
  if (value < 1 || value > 65_535) throw new InvalidArgumentError('It is a port, from 1 to 65535.')
  return value
}

/** The simulated street keeps its beginning across restarts, so that no moment of it is shown twice as new. */
function simulatedCamera(home: Home): CameraOption {
  const known = readState<{ origin: number; seed: number }>(home, 'simulator.json')
  const scene = known ?? { origin: Date.now(), seed: 7 }
  if (!known) writeState(home, 'simulator.json', scene)
  return { cameraId: simulatedId, address: `simulator:?seed=${scene.seed}&origin=${scene.origin}`, framesPerSecond: 5 }
}

interface UpFlags {
  readonly camera: readonly string[]
  readonly footage?: string
  readonly zones?: string
  readonly labels?: string
  readonly task: string
  readonly port?: number
  readonly demo?: boolean
}

const simulatedId = 'street'
const simulatedTask = 'occupancy'

function camerasOf(home: Home, flags: UpFlags): CameraOption[] {
  const cameras: CameraOption[] = flags.camera.map((text, at) => {
    const named = /^([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)$/.exec(text)
    return named ? { cameraId: named[1] ?? '', address: named[2] ?? '' } : { cameraId: `camera-${at + 1}`, address: text }
  })
  if (flags.footage) {
    const path = resolve(flags.footage)
    if (!existsSync(path) || !statSync(path).isFile()) throw new Fault('SOURCE_UNREADABLE', `There is no file ${path} (--footage)`)
    const cameraId = (path.split('/').at(-1) ?? '').replace(/\.[^.]*$/, '')
    if (!isName(cameraId)) throw new Fault('SOURCE_UNREADABLE', `A camera is named after its file, and ${cameraId} is no name: letters, digits, dots, dashes and underscores only`)
    cameras.push({ cameraId, address: `file:${encodeURI(path)}?loop=true` })
  }
  const taken = cameras.find(({ cameraId, address }) => cameraId === simulatedId && !address.startsWith('simulator:'))
  if (taken)
    throw new Fault(
      'SOURCE_UNREADABLE',
      `${taken.address.split('?')[0]} would be camera ${simulatedId}, which is the simulated one: call it otherwise (footage by its file, others with --camera NAME=…), or its zones and labels are taken for this one's`,
    )
  if (flags.demo ?? cameras.length === 0) cameras.unshift(simulatedCamera(home))
  return cameras
}

async function runUp(flags: UpFlags): Promise<void> {
  const home = openHome()
  const there = runningStack(home)
  if (there) {
    const asked = [flags.footage, flags.zones, flags.labels, flags.camera?.length ? flags.camera : undefined].some((value) => value !== undefined)
    if (asked) process.exitCode = 1
    print(
      `frameloop runs already (process ${there.supervisor.pid}, since ${there.startedAt}). See it with \`npx frameloop status\`, stop it with \`npx frameloop down\`.${asked ? ' What was asked for now was not done: stop it first.' : ''}`,
    )
    return
  }
  const since = Date.now()
  const controller = new AbortController()
  const stopped = new Error('stopped before it was ready')
  let asked = 0
  const stop = (): void => {
    asked += 1
    if (asked === 1) print('[up] stopping …')
    controller.abort(stopped)
    if (asked > 2) process.exit(1)
  }
  process.on('SIGINT', stop)
  process.on('SIGTERM', stop)
  process.on('SIGHUP', stop)
  const say = (text: string): void => print(`[up] ${text}`)
  if (!isName(flags.task)) throw new Fault('REQUEST_INVALID', `${flags.task} is no name of a task: letters, digits, dots, dashes and underscores only (--task)`)
  const cameras = camerasOf(home, flags)
  // files are read before anything is started: a wrong one is told at once
  const zones = flags.zones ? parseZones(readNamed(flags.zones)) : undefined
  const labels = flags.labels ? parseLabels(readNamed(flags.labels)) : undefined
  const own = cameras.filter(({ address }) => !address.startsWith('simulator:'))
  if ((zones || labels) && own.length !== 1)
    throw new Fault(
      'REQUEST_INVALID',
      `Zones and labels are of one camera, and ${own.length === 0 ? 'none is named: say which with --footage or --camera' : `${own.length} are named: import labels of the others with \`labels import\``}`,
    )
  const labelled = own.at(-1)?.cameraId ?? cameras.at(-1)?.cameraId ?? ''
  const isSimulated = cameras[0]?.cameraId === simulatedId && cameras[0].address.startsWith('simulator:')
  const zoneSets = [
    ...(zones ? [{ cameraId: labelled, task: flags.task, zones }] : []),
    ...(isSimulated ? [{ cameraId: simulatedId, task: simulatedTask, zones: simulatedZones }] : []),
  ]
  const options = { cameras, zones: zoneSets, ...(flags.port === undefined ? {} : { consolePort: flags.port }), say }
  const stack = await up(home, options, controller.signal).catch((thrown: unknown) => {
    if (thrown !== stopped) throw thrown
  })
  if (stack) {
    try {
      await runUntilAsked(stack, { flags, labels, labelled, isSimulated, home, say, since }, controller.signal)
    } finally {
      controller.abort(stopped)
      await stack.supervisor.stop()
    }
  }
  print('[up] stopped')
  // what a start that was given up still waits for is nobody's concern any more
  if (!stack) process.exit()
}

interface Asked {
  readonly flags: UpFlags
  readonly labels: readonly LabelLine[] | undefined
  /** The camera that zones and labels are about. */
  readonly labelled: string
  readonly isSimulated: boolean
  readonly home: Home
  readonly say: (text: string) => void
  readonly since: EpochMs
}

/** What a running stack is given by the command that started it, until the signal. */
async function runUntilAsked({ state }: RunningStack, { flags, labels, labelled, isSimulated, home, say, since }: Asked, signal: AbortSignal): Promise<void> {
  const { endpoints, environment } = state
  const pool = openPool(environment['DATABASE_URL'] ?? '', 'up', 2)
  const demo = { pool, labelsUrl: endpoints['labels'] ?? '', cameraId: labelled, task: flags.task, say }
  const loops: Promise<void>[] = []
  await using _ = { [Symbol.asyncDispose]: () => pool.end() }
  if (isSimulated) loops.push(runSimulatorTruth({ ...demo, cameraId: simulatedId, task: simulatedTask }, readState<{ seed: number }>(home, 'simulator.json')?.seed ?? 0, signal))
  if (labels) {
    // said when the file was written: what somebody has corrected since stands, however often it is started
    const asOf = flags.labels && existsSync(flags.labels) ? { asOf: statSync(flags.labels).mtime.toISOString() } : {}
    const imported = await importLabels(demo.labelsUrl, labels, { cameraId: labelled, task: flags.task, source: flags.labels ?? '', ...asOf }, () => {})
    say(`labels: ${showImported(imported)}`)
    for (const { line, message } of imported.rejected.slice(0, 5)) say(`  line ${line}: ${message}`)
    if (imported.stored + imported.unchanged > 0) loops.push(trainWhenPrepared(demo, labels, signal))
  }
  print(`[up] ready after ${showMs(Date.now() - since)}: open ${state.console}. Stop with Ctrl-C.`)
  while (!signal.aborted) await sleep(3_600_000, undefined, { signal }).catch(() => {})
  await Promise.all(loops)
}

function showImported(imported: Imported): string {
  const { stored, unchanged, superseded, rejected } = imported
  return `${stored} stored (${superseded} of them replace earlier ones), ${unchanged} unchanged, ${rejected.length} refused`
}

async function runImport(file: string, flags: { readonly camera: string; readonly task: string; readonly asOf?: string }): Promise<void> {
  const labels = parseLabels(readNamed(file))
  const url = process.env['LABELS_URL'] ?? needStack(findHome()).endpoints['labels'] ?? ''
  const progress = (done: number): void => {
    if (process.stdout.isTTY) process.stdout.write(`\r${done} of ${labels.length} labels sent`)
  }
  const imported = await importLabels(url, labels, { cameraId: flags.camera, task: flags.task, source: file, ...(flags.asOf ? { asOf: flags.asOf } : {}) }, progress)
  if (process.stdout.isTTY) process.stdout.write('\r')
  print(showImported(imported))
  if (imported.rejected.length === 0) return
  throw new Fault(
    'LABELS_INVALID',
    `${imported.rejected.length} labels were refused:\n  ${imported.rejected
      .slice(0, 20)
      .map(({ line, message }) => `line ${line}: ${message}`)
      .join('\n  ')}`,
  )
}

async function runDown(): Promise<void> {
  const home = findHome()
  const supervisor = runningSupervisor(home) ?? runningStack(home)?.supervisor
  if (!supervisor) {
    print('frameloop does not run here.')
    return
  }
  const { pid, ticks } = supervisor
  process.kill(pid, 'SIGTERM')
  const deadline = Date.now() + 30_000
  while (isSameProcess(pid, ticks)) {
    if (Date.now() > deadline) throw new Fault('TIMED_OUT', `Process ${pid} did not stop within 30 s`)
    await sleep(100)
  }
  print('frameloop has stopped.')
}

function runLogs(name: string): void {
  const home = findHome()
  const file = `${home.logs}/${name}.log`
  if (!existsSync(file)) {
    const names = existsSync(home.logs) ? readdirSync(home.logs).map((entry) => entry.replace(/\.log$/, '')) : []
    throw new Fault('NOT_FOUND', `There is no log of ${name}; there are logs of ${names.join(', ') || 'nothing yet'}`)
  }
  createReadStream(file).pipe(process.stdout)
}

function showRebuilt(found: Rebuilt | Comparison): string {
  const gone = found.gone.map(({ topic, partition, from, until }) => `${topic}/${partition} from ${from} to ${until - 1} lies neither in Kafka nor in the archive`)
  if (!('tables' in found)) return [`${found.records} records read, rows written`, ...gone].join('\n')
  const lines = found.tables.map(
    ({ table, rows, missing, extra, examples }) =>
      `${table.padEnd(12)} ${String(rows).padStart(8)} rows rebuilt, ${missing + extra === 0 ? 'equal' : `${missing} missing or other here, ${extra} here only or other: ${examples.join(', ')}`}`,
  )
  return [`${found.records} records read`, ...lines, ...gone].join('\n')
}

export async function main(argv: readonly string[]): Promise<void> {
  // whoever reads has enough: `frameloop logs train | head`
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error
    process.exit()
  })
  const program = new Command('frameloop')
    .description('Cameras in, a model that keeps learning from them out.')
    .version('0.1.0')
    .showHelpAfterError('(--help shows how the command is used)')
  program
    .command('up')
    .description('start the stack and all processes; runs until Ctrl-C')
    .option('--camera <[NAME=]ADDRESS>', 'a camera: rtsp://…, file:PATH, folder:PATH, simulator:?seed=N (repeatable)', (value: string, all: string[]) => [...all, value], [])
    .option('--footage <FILE>', 'a video file, played in real time and looped; the camera is named after it')
    .option('--zones <FILE>', 'zones of the camera, JSON')
    .option('--labels <FILE>', 'labels of the camera, CSV; training begins by itself when the labelled range has been prepared')
    .option('--task <NAME>', 'the question asked of the zones', 'occupancy')
    .option('--port <N>', 'port of the page (4600, or the next free one)', readPort)
    .option('--demo', 'the simulated camera beside the ones given; it is the default when none is given')
    .option('--no-demo', 'no simulated camera')
    .action(runUp)
  program
    .command('provision')
    .description('make buckets, tables, topics and schemas in services of your own (settings from the environment); `up` does it by itself')
    .action(() => provision(process.env, print))
  program.command('down').description('stop what `up` started').action(runDown)
  program
    .command('status')
    .description('what runs and how large it is')
    .option('--json', 'for programs')
    .action(async ({ json }: { json?: boolean }) => {
      const found = await status(findHome())
      print(json ? JSON.stringify(found, null, 2) : showStatus(found))
    })
  program.command('logs').description('the log of a part or process').argument('<PROCESS>', 'for example validate').action(runLogs)
  program
    .command('follow')
    .description('where a frame or media has been, or which model and data an answer to a picture that was sent along comes from')
    .argument('<ID>', 'a frame or media id, or the trace id of an answer')
    .option('--json', 'for programs')
    .action(async (id: string, { json }: { json?: boolean }) => {
      if (isTraceId(id)) {
        const origin = await withDatabase((pool) => followAnswer(pool, id))
        print(json ? JSON.stringify(origin, null, 2) : showOrigin(origin))
        return
      }
      const way = await withDatabase((pool) => follow(pool, id))
      print(json ? JSON.stringify(way, null, 2) : showWay(way))
    })
  program
    .command('ledger')
    .description('per camera and epoch: captured = validated + rejected + lost + erased + open; exit code 1 when something is open for longer than a minute')
    .option('--allow <SECONDS>', 'how long something may be open', readNumber, openLimit / 1000)
    .option('--json', 'for programs')
    .action(async ({ json, allow }: { json?: boolean; allow: number }) => {
      const found = await withDatabase(readLedger)
      print(json ? JSON.stringify(found, null, 2) : showLedger(found, allow * 1000))
      if (overdue(found, allow * 1000).length > 0) process.exitCode = 1
    })
  program
    .command('verify')
    .description('object store, topics and rows against each other; exit code 1 when something is missing, doubled or orphaned, or the catalog is behind')
    .option('--from <TIME>', 'captured at or after this time (the last day)')
    .option('--to <TIME>', 'captured before this time (two minutes ago: what is younger may be on its way)')
    .option('--settle <SECONDS>', 'objects that were stored since may be on their way and are no orphans', readNumber, settleTime / 1000)
    .option('--repair', 'write missing rows again from their records, announce again what lies in the raw bucket, remove what stages left behind')
    .option('--orphan-age <HOURS>', 'with --repair: what a stage left behind is removed when it is older', readNumber, 24)
    .option('--json', 'for programs')
    .action(async (flags: { from?: string; to?: string; settle: number; repair?: boolean; orphanAge: number; json?: boolean }) =>
      withDatabase(async (pool) => {
        const store = objectStoreOf(environment())
        const say = (text: string): void => void process.stderr.write(`${text}\n`)
        const tools = { pool, store, bucketPrefix: bucketPrefix(), say, brokers: setting('KAFKA_BROKERS'), settle: flags.settle * 1000 }
        try {
          const found = await verify(timeOf(flags.from, '--from') ?? new Date(Date.now() - 86_400_000), timeOf(flags.to, '--to') ?? new Date(Date.now() - settleTime), tools)
          if (found.findings.length > 0) process.exitCode = 1
          const repaired = flags.repair
            ? await repair(found.findings, { ...tools, registryUrl: setting('SCHEMA_REGISTRY_URL'), orphanAge: flags.orphanAge * 3_600_000 })
            : undefined
          if (flags.json) {
            print(JSON.stringify({ ...found, ...(repaired ? { repaired } : {}) }, null, 2))
            return
          }
          print(showVerified(found))
          if (!repaired) return
          for (const [what, why] of repaired.left) print(`left ${what}: ${why}`)
          print(`${repaired.written} records written again, ${repaired.announced} media announced again, ${repaired.removed} objects removed`)
        } finally {
          store.close()
        }
      }),
    )
  const dead = program.command('dead-letters').description('records that a stage could not accept')
  const filtered = (command: Command): Command =>
    command
      .option('--reason <CODE>', 'only this reason')
      .option('--camera <ID>', 'only this camera')
      .option('--stage <NAME>', 'only this stage')
      .option('--from <TIME>', 'rejected at or after this time')
      .option('--to <TIME>', 'rejected before this time')
      .option('--limit <N>', 'at most this many', readWhole, 100)
  filtered(dead.command('list').description('which, why, and where they lie; oldest first'))
    .option('--json', 'for programs')
    .action(async (flags: DeadLetterFlags & { json?: boolean }) => {
      const found = await withDatabase((pool) => listDeadLetters(pool, flags))
      print(flags.json ? JSON.stringify(found, null, 2) : showDeadLetters(found))
    })
  dead
    .command('show')
    .description('one record: headers, key, value')
    .argument('<PLACE>', 'TOPIC/PARTITION/OFFSET, as `list` prints it')
    .action(async (place: string) => print(await showDeadLetter(setting('KAFKA_BROKERS'), setting('SCHEMA_REGISTRY_URL'), place)))
  filtered(dead.command('redrive').description('send them through the chain again, key and value unchanged'))
    .option('--dry-run', 'only say which')
    .action(async (flags: DeadLetterFlags & { dryRun?: boolean }) =>
      withDatabase(async (pool) => {
        const letters = await listDeadLetters(pool, { ...flags, dueFirst: true })
        const { sent, left } = await redrive(letters, { pool, brokers: setting('KAFKA_BROKERS'), dryRun: flags.dryRun ?? false, requestedBy: process.env['USER'] ?? '' })
        for (const [place, why] of left) print(`left ${place}: ${why}`)
        for (const letter of sent) print(`${flags.dryRun ? 'would send' : 'sent'} ${placeOf(letter)} to ${letter.origin_topic}`)
        print(`${sent.length} ${flags.dryRun ? 'would be sent' : 'sent'}, ${left.size} left`)
      }),
    )
  const labels = program.command('labels').description('the truth about zones')
  labels
    .command('import')
    .description('store labels from a CSV file; lines already stored are recognised')
    .argument('<FILE>', 'columns media_offset_ms (or frame_id, or frame_at), zone, label')
    .requiredOption('--camera <ID>', 'the camera')
    .requiredOption('--task <NAME>', 'the question the labels answer')
    .option('--as-of <TIME>', 'recorded time, for example 2026-11-24T10:00:00Z')
    .action(runImport)
  const agents = program.command('agents').description('the agents beside the cameras')
  agents
    .command('list', { isDefault: true })
    .description('what each agent reports: its cameras, what waits, which settings run')
    .option('--json', 'for programs')
    .action(async ({ json }: { json?: boolean }) => {
      const reports = await listAgents(setting('KAFKA_BROKERS'), openCodec(openRegistry(setting('SCHEMA_REGISTRY_URL'))))
      print(json ? JSON.stringify(reports, null, 2) : showAgents(reports, Date.now()))
    })
  agents
    .command('set <AGENT> <FILE>')
    .description(
      'makes an agent run the cameras of a file (`cameras: […]` and, if wanted, `uploads: {…}`, as in its own); secrets only as references to files or variables beside the agent',
    )
    .requiredOption('--name <NAME>', 'what these settings are called')
    .action(async (agent: string, file: string, { name }: { name: string }) => {
      const count = await wantCameras(agent, file, name, setting('KAFKA_BROKERS'), openCodec(openRegistry(setting('SCHEMA_REGISTRY_URL'))))
      print(`${agent} is to run ${count} camera${count === 1 ? '' : 's'} (${name}); \`npx frameloop agents\` shows when it does`)
    })
  agents
    .command('key <AGENT> <FILE>')
    .description('makes the public key of an agent known (PEM; - is standard input): from then on what it announces must be signed')
    .action(async (agent: string, file: string) => {
      await withDatabase((pool) => addAgentKey(pool, agent, file === '-' ? readFileSync(0, 'utf8') : readNamed(file)))
      print(`what ${agent} announces must be signed from now on`)
    })
  const keys = program.command('keys').description('who may ask inference')
  keys
    .command('add <NAME>')
    .description('makes a key and shows it, this once; what is not said it may all reach')
    .option('--verbs <LIST>', 'predict, feeds, models')
    .option('--cameras <LIST>', 'only these, with commas')
    .option('--tasks <LIST>', 'only these, with commas')
    .option('--rate <N>', 'requests and frames a second, at most')
    .action(async (name: string, flags: KeyFlags) => {
      const { keyId, key } = await withDatabase((pool) => makeKey(pool, name, flags))
      print(`${key}\nkept as ${keyId} by its SHA-256: it cannot be shown again. Send it as "Authorization: Bearer ${key.slice(0, 16)}…"`)
    })
  keys
    .command('list', { isDefault: true })
    .description('each key and what it reaches')
    .action(async () => print(showKeys(await withDatabase(listKeys))))
  keys
    .command('revoke <ID>')
    .description('from two seconds later on the key is refused')
    .action(async (keyId: string) => {
      await withDatabase((pool) => revokeKey(pool, keyId))
      print(`${keyId} is refused from now on`)
    })
  const replays = program
    .command('replay')
    .description('a past range again, on a side topic: for training, for another preprocessing, for a program of yours; touches nothing live')
    .option('--from <TIME>', 'event time, inclusive')
    .option('--to <TIME>', 'event time, exclusive (now)')
    .option('--topic <NAME>', 'what is replayed', 'features.prepared')
    .option('--cameras <LIST>', 'only these, with commas')
    .option('--task <NAME>', 'only features that this task asks about')
    .option('--speed <N>', 'times real time, or max', 'max')
    .option('--into <NAME>', 'last part of the side topic (the id)')
    .option('--preprocessing <LIST>', 'prepare the frames anew, for example 96x96,gray,equalise')
    .option('--resume <ID>', 'go on with a replay that was stopped')
    .option('--json', 'for programs')
    .action(async (flags: ReplayFlags) => {
      const controller = new AbortController()
      process.once('SIGINT', () => controller.abort())
      process.once('SIGTERM', () => controller.abort())
      const isDone = await withStores((stack) => replay(flags, { ...stack, requestedBy: process.env['USER'] ?? '', print, signal: controller.signal }))
      if (!isDone) process.exitCode = 1
    })
  replays
    .command('list')
    .description('all replays')
    .action(async () => print(showReplays(await withDatabase(listReplays))))
  replays
    .command('remove')
    .description('remove the side topic and what was prepared for it; the manifest stays')
    .argument('<ID>', 'as `replay list` prints it')
    .action(async (id: string) => {
      const { objects } = await withStores((stack) => removeReplay(id, stack))
      print(`replay ${id} is removed${objects > 0 ? `, ${objects} objects with it` : ''}`)
    })
  program
    .command('catalog')
    .description('the tables that say what became of every frame')
    .command('rebuild')
    .description('write the rows once more from the archive and the topics: what was lost comes back, the rest stays as it is')
    .option('--check', 'beside the tables instead, compared with them and dropped; exit code 1 when they differ')
    .option('--json', 'for programs')
    .action(async ({ check, json }: { check?: boolean; json?: boolean }) => {
      const controller = new AbortController()
      process.once('SIGINT', () => controller.abort())
      const progress = progressOf()
      const found = await withStores<Rebuilt | Comparison>(async ({ pool, ...stack }) => {
        const tools = { ...stack, pool, sql: pool, codec: openCodec(openRegistry(stack.registryUrl)), onProgress: progress }
        return check ? compareRebuilt(tools, Date.now() - settleTime, controller.signal) : rebuildInPlace(tools, controller.signal)
      })
      progress.end()
      print(json ? JSON.stringify(found, null, 2) : showRebuilt(found))
      if ('tables' in found && found.tables.some(({ missing, extra }) => missing + extra > 0)) process.exitCode = 1
    })
  const tasks = program.command('tasks').description('questions asked of zones, and how pixels are prepared for them')
  tasks
    .command('list')
    .description('all tasks')
    .option('--json', 'for programs')
    .action(async ({ json }: { json?: boolean }) => {
      const found = await withDatabase(listTasks)
      print(json ? JSON.stringify(found, null, 2) : showTasks(found))
    })
  tasks
    .command('set')
    .description('make a task, or change how its zones are prepared; the champion goes on being served until a new version replaces it')
    .argument('<TASK>', 'the task')
    .option('--size <WxH>', 'pixels of the model, for example 96x96')
    .option('--kernel <NAME>', 'area (default), linear, cubic or lanczos')
    .option('--colour <NAME>', 'rgb (default) or gray')
    .option('--filters <LIST>', 'in order, with commas: equalise, denoise, sharpen, difference; none for none')
    .option('--classes <LIST>', 'answers in order, with commas (as labelled)')
    .action(async (task: string, flags: PreprocessingFlags & { classes?: string }) => {
      const { preprocessing, isNew, isChanged, without } = await withDatabase((pool) => setTask(pool, task, flags))
      print(`${task}: ${showPreprocessing(preprocessing)}${isNew ? ', new; give it zones' : ''}`)
      if (isChanged) print(`Frames are prepared this way from now on, and the old way too while its champion serves. Then: npx frameloop train ${task} --wait`)
      for (const camera of without) print(`${camera} has no reference picture to be compared with: npx frameloop references build ${camera}`)
    })
  const references = program.command('references').description('the picture of a camera with nothing going on, for the filter `difference`')
  references
    .command('build')
    .description('the median of frames of a range; use the range that is trained on')
    .argument('<CAMERA>', 'the camera')
    .option('--from <TIME>', 'capture time, inclusive')
    .option('--to <TIME>', 'capture time, exclusive')
    .option('--from-offset-ms <N>', 'media offset, inclusive', readNumber)
    .option('--until-offset-ms <N>', 'media offset, exclusive', readNumber)
    .option('--frames <N>', 'at most this many, spread evenly', readWhole, 25)
    .action(async (camera: string, flags: ReferenceFlags) => {
      const store = objectStoreOf(environment())
      try {
        const made = await withDatabase((pool) => buildReference(camera, flags, { pool, store, bucketPrefix: bucketPrefix(), say: print }))
        print(`${camera}: reference ${made.version}, ${made.width}x${made.height}, the median of ${made.frames} frames (${made.sha256.slice(0, 12)}…)`)
      } finally {
        store.close()
      }
    })
  program
    .command('train')
    .description('train a model on labelled frames; prints the run')
    .argument('<TASK>', 'the task')
    .option('--camera <ID>', 'only this camera')
    .option('--from-offset-ms <N>', 'media offset, inclusive', readNumber)
    .option('--until-offset-ms <N>', 'media offset, exclusive', readNumber)
    .option('--from <TIME>', 'capture time, inclusive')
    .option('--to <TIME>', 'capture time, exclusive')
    .option('--seed <N>', 'seed of weights and draws', readWhole, 1)
    .option('--wait', 'first wait until the range is prepared, then until the run has ended')
    .option('--promote', 'promote the result whatever its figures, on record')
    .option('--json', 'for programs')
    .action(async (task: string, flags: TrainFlags) => withDatabase((pool) => train(pool, task, flags, print)))
  const models = program.command('models').description('versions and who serves')
  models
    .command('list')
    .description('all versions with their held-out figures')
    .option('--json', 'for programs')
    .action(async ({ json }: { json?: boolean }) => {
      const found = await withDatabase(listModels)
      print(json ? JSON.stringify(found, null, 2) : showModels(found))
    })
  const by = process.env['USER'] || 'command'
  const inRoles = <Result>(task: string, decide: (sql: Sql) => Promise<Result>): Promise<Result> => withDatabase((pool) => decideRoles(pool, task, decide))
  models
    .command('show')
    .description('one version: figures per zone, data, when it served; JSON')
    .argument('<TASK>', 'the task')
    .argument('<VERSION>', 'as `models list` prints it')
    .action(async (task: string, version: string) => print(JSON.stringify(await withDatabase((pool) => showModel(pool, task, version)), null, 2)))
  models
    .command('promote')
    .description('make a version champion, on record; inference servers swap without a gap')
    .argument('<TASK>', 'the task')
    .argument('<VERSION>', 'as `models list` prints it')
    .option('--reason <TEXT>', 'stands in the record', 'promoted by hand')
    .option(
      '--no-probation',
      'keep it whatever its answers are like; else for ten minutes the one before answers in its shadow, and takes its place again if it is right more often',
    )
    .action(async (task: string, version: string, { reason, probation }: { reason: string; probation: boolean }) => {
      const role = { alias: 'champion', ...(probation ? { probation: probationTime } : {}) } as const
      const { before } = await inRoles(task, (sql) => promote(sql, task, version, role, by, reason))
      print(`version ${version} of ${task} is champion now${before ? `, version ${before} was` : ''}`)
    })
  models
    .command('challenge')
    .description('let a version answer a share of the live frames in place of the champion')
    .argument('<TASK>', 'the task')
    .argument('<VERSION>', 'as `models list` prints it')
    .requiredOption('--share <N>', 'of the frames, between 0 and 1')
    .option('--reason <TEXT>', 'stands in the record', 'challenges by hand')
    .action(async (task: string, version: string, { share, reason }: { share: string; reason: string }) => {
      if (!(Number(share) > 0 && Number(share) <= 1)) throw new Fault('REQUEST_INVALID', `A share lies between 0 and 1, ${share} does not`)
      await inRoles(task, (sql) => promote(sql, task, version, { alias: 'challenger', share: Number(share) }, by, reason))
      print(`version ${version} of ${task} answers ${Number(share) * 100} % of the live frames`)
    })
  models
    .command('shadow')
    .description('let a version answer the live frames too, on record only: nobody is sent its answers')
    .argument('<TASK>', 'the task')
    .argument('<VERSION>', 'as `models list` prints it')
    .option('--reason <TEXT>', 'stands in the record', 'watched by hand')
    .action(async (task: string, version: string, { reason }: { reason: string }) => {
      await inRoles(task, (sql) => promote(sql, task, version, { alias: 'shadow' }, by, reason))
      print(`version ${version} of ${task} answers in the shadow of the champion`)
    })
  models
    .command('retire')
    .description('end the part of a challenger or shadow')
    .argument('<TASK>', 'the task')
    .addArgument(new Argument('<ALIAS>', 'which of them').choices(['challenger', 'shadow']))
    .action(async (task: string, alias: Alias) => {
      await inRoles(task, (sql) => retire(sql, task, alias, by, 'retired by hand'))
      print(`${task} has no ${alias} any more`)
    })
  models
    .command('rollback')
    .description('make the version champion that was it before')
    .argument('<TASK>', 'the task')
    .option('--reason <TEXT>', 'stands in the record', '')
    .action(async (task: string, { reason }: { reason: string }) => {
      const { version, before } = await inRoles(task, (sql) => rollback(sql, task, by, reason))
      print(`version ${version} of ${task} is champion again, version ${before} was`)
    })
  const predictions = program.command('predictions').description('answers')
  predictions
    .command('export')
    .description('answers of a camera, oldest first')
    .requiredOption('--camera <ID>', 'the camera')
    .option('--task <NAME>', 'only this task')
    .option('--shadow', 'also answers of shadows, which were sent to nobody')
    .option('--csv', 'comma separated (the default)')
    .action(async (flags: { camera: string; task?: string; shadow?: boolean }) => withDatabase((pool) => exportPredictions(pool, flags, process.stdout)))
  program
    .command('doctor')
    .description('what frameloop needs of this machine, and what is missing')
    .action(async () => {
      const { doctor } = await import('../setup/prerequisites.mjs')
      if (!doctor()) process.exitCode = 1
    })
  try {
    await program.parseAsync([...argv])
  } catch (thrown) {
    const error = toError(thrown)
    process.stderr.write(`frameloop: ${redact(error.message)}\n`)
    if (error instanceof Fault) process.stderr.write(`${error.hint}\n`)
    else process.stderr.write(`${redact(error.stack ?? '')}\n`)
    process.exitCode = 1
  }
}
