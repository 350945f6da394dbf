/** The `frameloop` command. Every sub-command says what to do next on failure, and exits 0 only when it did what was asked. */
import { createReadStream, existsSync, readdirSync, statSync } from 'node:fs'
import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, toError } from '@frameloop/kit/fault'
import { redact } from '@frameloop/kit/log'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { showMs } from '@frameloop/kit/units'
import { isName } from '@frameloop/schemas/ids'
import { Command } from 'commander'
import { follow, showWay } from './follow.ts'
import { type Home, isSameProcess, openHome, readState, writeState } from './home.ts'
import { showStatus, status } from './status.ts'
import { type CameraOption, needStack, runningStack, up } from './up.ts'

const print = (text: string): void => {
  process.stdout.write(`${text}\n`)
}

async function withDatabase<Result>(home: Home, use: (pool: Pool) => Promise<Result>): Promise<Result> {
  const url = process.env['DATABASE_URL'] ?? needStack(home).environment['DATABASE_URL'] ?? ''
  const pool = openPool(url, 'command', 2)
  try {
    return await use(pool)
  } finally {
    await pool.end()
  }
}

/** The simulated street keeps its beginning across restarts, so that no moment of it is shown twice as new. */
function simulatedCamera(home: Home): CameraOption {
  const known = readState<{ origin: number; seed: number }>(home, 'simulator.json')
  const scene = known ?? { origin: Date.now(), seed: 7 }
  if (!known) writeState(home, 'simulator.json', scene)
  return { cameraId: 'street', address: `simulator:?seed=${scene.seed}&origin=${scene.origin}`, framesPerSecond: 5 }
}

interface UpFlags {
  readonly camera: readonly string[]
  readonly footage?: string
  readonly demo: boolean
}

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
  if (cameras.length === 0 && flags.demo) cameras.push(simulatedCamera(home))
  return cameras
}

async function runUp(flags: UpFlags): Promise<void> {
  const home = openHome()
  const there = runningStack(home)
  if (there) {
    print(`frameloop runs already (process ${there.supervisor.pid}, since ${there.startedAt}). See it with \`npx frameloop status\`, stop it with \`npx frameloop down\`.`)
    return
  }
  const since = Date.now()
  const controller = new AbortController()
  let asked = 0
  const stop = (): void => {
    asked += 1
    controller.abort()
    if (asked > 2) process.exit(1)
  }
  process.on('SIGINT', stop)
  process.on('SIGTERM', stop)
  process.on('SIGHUP', stop)
  const stack = await up(home, { cameras: camerasOf(home, flags), say: (text) => print(`[up] ${text}`) })
  print(`[up] ready after ${showMs(Date.now() - since)}. Stop with Ctrl-C.`)
  while (!controller.signal.aborted) await sleep(3_600_000, undefined, { signal: controller.signal }).catch(() => {})
  print('[up] stopping …')
  await stack.supervisor.stop()
  print('[up] stopped')
}

async function runDown(): Promise<void> {
  const home = openHome()
  const stack = runningStack(home)
  if (!stack) {
    print('frameloop does not run here.')
    return
  }
  const { pid, ticks } = stack.supervisor
  process.kill(pid, 'SIGTERM')
  const deadline = Date.now() + 30_000
  while (isSameProcess(pid, ticks)) {
    if (Date.now() > deadline) throw new Fault('TIMED_OUT', `Process ${pid} did not stop within 30 s`)
    await sleep(100)
  }
  print('frameloop has stopped.')
}

function runLogs(name: string): void {
  const home = openHome()
  const file = `${home.logs}/${name}.log`
  if (!existsSync(file)) {
    const names = readdirSync(home.logs).map((entry) => entry.replace(/\.log$/, ''))
    throw new Fault('NOT_FOUND', `There is no log of ${name}; there are logs of ${names.join(', ') || 'nothing yet'}`)
  }
  createReadStream(file).pipe(process.stdout)
}

export async function main(argv: readonly string[]): Promise<void> {
  const program = new Command('frameloop')
    .description('Cameras in, a model that keeps learning from them out.')
    .version('0.1.0')
    .showHelpAfterError('(--help shows how the command is used)')
  program
    .command('up')
    .description('start the stack and all processes; runs until Ctrl-C')
    .option('--camera <[NAME=]ADDRESS>', 'a camera: rtsp://…, file:PATH, folder:PATH, simulator:?seed=N (repeatable)', (value: string, all: string[]) => [...all, value], [])
    .option('--footage <FILE>', 'a video file, played in real time and looped; the camera is named after it')
    .option('--no-demo', 'without a camera given, start none instead of the simulated one')
    .action(runUp)
  program.command('down').description('stop what `up` started').action(runDown)
  program
    .command('status')
    .description('what runs and how large it is')
    .option('--json', 'for programs')
    .action(async ({ json }: { json?: boolean }) => {
      const found = await status(openHome())
      print(json ? JSON.stringify(found, null, 2) : showStatus(found))
    })
  program.command('logs').description('the log of a part or process').argument('<PROCESS>', 'for example validate').action(runLogs)
  program
    .command('follow')
    .description('where a frame or media has been')
    .argument('<ID>', 'a frame or media id')
    .option('--json', 'for programs')
    .action(async (id: string, { json }: { json?: boolean }) => {
      const way = await withDatabase(openHome(), (pool) => follow(pool, id))
      print(json ? JSON.stringify(way, null, 2) : showWay(way))
    })
  program
    .command('doctor')
    .description('what frameloop needs of this machine, and what is missing')
    .action(async () => {
      const { prerequisites, prerequisiteTable, installCommands } = await import('../setup/prerequisites.mjs')
      const rows = prerequisites({ tests: true })
      print(prerequisiteTable(rows))
      const missing = rows.filter(({ found }) => !found)
      if (missing.length === 0) return
      print(`\nInstall what is missing with one of\n${installCommands(missing)}`)
      process.exitCode = 1
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
