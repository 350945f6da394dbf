#!/usr/bin/env node
/** `frameloop-agent`: sets up, checks and runs the agent of one machine. */
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { Fault, toError } from '@frameloop/kit/fault'
import { openLog, redact } from '@frameloop/kit/log'
import { showBytes, showMs } from '@frameloop/kit/units'
import type { AgentReported } from '@frameloop/schemas/events'
import { makeKeys } from '@frameloop/schemas/signature'
import { Command, InvalidArgumentError } from 'commander'
import { type FoundCamera, findCameras } from './capture/onvif.ts'
import { checkAll, showChecks } from './check.ts'
import { readAgentConfig, usualConfig, withoutSecrets, writeFirstConfig } from './config.ts'
import { installService, type ServiceFlags, unitOf } from './install-service.ts'
import { isCurrent, waitingText } from './report.ts'
import { runAgent } from './run.ts'
import { takeSnapshot } from './snapshot.ts'
import { Spool } from './spool/spool.ts'
import { exportFrames, showSpool } from './spool-commands.ts'
import { showTable } from './table.ts'

const print = (text: string): void => {
  process.stdout.write(`${text}\n`)
}

const configFile = (flags: { readonly config?: string }): string => flags.config ?? (existsSync('agent.yaml') ? 'agent.yaml' : usualConfig)

interface InitFlags {
  readonly config: string
  readonly force?: boolean
  readonly agent?: string
  readonly site?: string
  readonly spool?: string
  readonly kafka?: string
  readonly registry?: string
  readonly s3?: string
  readonly camera: readonly string[]
  readonly find?: boolean
}

/** Looks for ONVIF cameras and shows them. */
async function find(): Promise<readonly FoundCamera[]> {
  process.stderr.write('looking for ONVIF cameras for 3 s …\n')
  const found = await findCameras(3_000)
  process.stderr.write(
    found.length === 0
      ? 'none answers on the networks of this machine\n'
      : `${showTable(
          ['camera', 'model', 'address'],
          found.map(({ name, model, address }) => [name, model, address]),
        )}\n`,
  )
  return found
}

/** Asks for what no flag says, on a terminal; elsewhere what is missing is an error. */
async function init(flags: InitFlags): Promise<void> {
  const path = resolve(flags.config)
  if (existsSync(path) && !flags.force) throw new Fault('CONFIG_INVALID', `${path} is there already; --force writes over it`)
  const missing: string[] = []
  const terminal = process.stdin.isTTY ? createInterface({ input: process.stdin, output: process.stderr }) : undefined
  const want = async (flag: string, value: string | undefined, question: string, usual: string): Promise<string> => {
    if (value !== undefined) return value
    if (!terminal) missing.push(`--${flag}`)
    return terminal ? (await terminal.question(`${question} [${usual}]: `)) || usual : usual
  }
  const brokers = await want('kafka', flags.kafka, 'Kafka brokers, host:port, comma separated', '127.0.0.1:9092')
  const registry = await want('registry', flags.registry, 'Schema registry', 'http://127.0.0.1:8081/apis/ccompat/v7')
  const s3 = await want('s3', flags.s3, 'S3 endpoint, or aws', 'http://127.0.0.1:8333')
  const found = flags.find || (terminal && flags.camera.length === 0) ? await find() : []
  const nameOf = ({ name }: FoundCamera, at: number): string => {
    const plain = name.replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[^A-Za-z0-9]+/, '')
    // two of one kind may have one name
    return plain && found.findIndex((other) => other.name === name) === at ? plain : `camera-${at + 1}`
  }
  let cameras = [...flags.camera, ...found.map((one, at) => `${nameOf(one, at)}=${one.address}`)]
  if (cameras.length === 0 && terminal) cameras = (await terminal.question('Cameras, NAME=ADDRESS, comma separated [none yet]: ')).split(',').filter((text) => text.trim())
  terminal?.close()
  if (missing.length > 0) throw new Fault('CONFIG_INVALID', `Nobody can be asked here, so ${missing.join(', ')} must be said`)
  const named = cameras.map((text, at) => {
    const [, id, address] = /^\s*([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)$/.exec(text) ?? [undefined, `camera-${at + 1}`, text.trim()]
    return { id: id ?? '', address: (address ?? '').trim() }
  })
  const { agent, site, spool } = flags
  mkdirSync(dirname(path), { recursive: true })
  // whoever may read it may read the cameras' logins
  writeFileSync(
    path,
    writeFirstConfig({
      brokers,
      registry,
      s3Endpoint: s3 === 'aws' ? '' : s3,
      cameras: named,
      ...(agent ? { agent } : {}),
      ...(site ? { site } : {}),
      ...(spool ? { spool } : {}),
    }),
    {
      mode: 0o600,
    },
  )
  print(
    `wrote ${path}\nnext: put the S3 keys into the variables S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY (or into files that it names), then\n  frameloop-agent check --config ${path}\nand to install it as a service\n  sudo install -D -m 600 ${path} ${usualConfig}\n  sudo -E frameloop-agent install-service --config ${usualConfig}`,
  )
}

/** Asks the agent that runs here. Throws `PART_NOT_READY` when nobody answers. */
async function askAgent(flags: { readonly config?: string }, method: 'GET' | 'POST', path: string): Promise<Response> {
  const { host, port } = readAgentConfig(configFile(flags), withoutSecrets)
  const at = `http://${host.includes(':') ? `[${host}]` : host}:${port}${path}`
  return fetch(at, { method, signal: AbortSignal.timeout(3_000) }).catch((thrown: unknown) => {
    throw new Fault('PART_NOT_READY', `No agent answers at ${at}: ${toError(thrown).message}`, {}, thrown)
  })
}

/** Has the agent do something, and prints what it answers. */
async function order(flags: { readonly config?: string }, path: string): Promise<void> {
  const response = await askAgent(flags, 'POST', path)
  const said = (await response.text()).trim()
  if (!response.ok) throw new Fault(response.status === 404 ? 'CAMERA_UNKNOWN' : 'SOURCE_UNREADABLE', said)
  print(said)
}

function readSeconds(value: string): number {
  if (!/^[1-9]\d{0,2}$/.test(value)) throw new InvalidArgumentError('It is a number from 1 to 999.')
  return Number(value)
}

async function status(flags: { readonly config?: string; readonly json?: boolean }): Promise<void> {
  const response = await askAgent(flags, 'GET', '/status')
  const report = (await response.json()) as AgentReported & { readonly pid: number }
  if (flags.json) {
    print(JSON.stringify(report, null, 2))
    return
  }
  const current = report.cameras.filter(isCurrent)
  print(`agent ${report.agentId} of ${report.siteId}, process ${report.pid}`)
  print(`spool ${waitingText(report, Date.now())}, ${showBytes(report.spoolBytes)} of ${showBytes(report.spoolCapacityBytes)}`)
  if (Math.abs(report.clockSkewMs) > 5_000) print(`its clock is ${showMs(Math.abs(report.clockSkewMs))} ${report.clockSkewMs > 0 ? 'ahead' : 'behind'}`)
  if (report.desiredVersion) print(`runs the wanted settings ${report.desiredVersion}`)
  if (report.announceError) print(`frames wait for Kafka: ${report.announceError}`)
  if (report.desiredError) print(`does not run the wanted settings ${report.desiredError}`)
  const rows = current.map(({ cameraId, state, framesPerSecond, highestSeq, forgottenSeq, lastFrameAt, message, health, uploadError }) => [
    cameraId,
    state,
    `${framesPerSecond.toFixed(1)}/s`,
    lastFrameAt > 0 ? `${showMs(Math.max(0, Date.now() - lastFrameAt))} ago` : 'never',
    String(highestSeq),
    String(highestSeq - forgottenSeq),
    [...health, message, uploadError].filter(Boolean).join(', '),
  ])
  print(showTable(['camera', 'state', 'kept', 'last', 'captured', 'waiting', ''], rows))
}

const program = new Command('frameloop-agent')
program
  .description('Captures from cameras, keeps frames on disk through outages, and delivers each of them.')
  .version('0.1.0')
  .showHelpAfterError('(frameloop-agent --help tells more)')
const config = ['-c, --config <file>', `the configuration; ./agent.yaml or ${usualConfig} when not said`] as const
const collect = (value: string, before: readonly string[]): string[] => [...before, value]

program
  .command('init')
  .description('writes a configuration with comments; asks for what no flag says')
  .option('-c, --config <file>', 'where to', 'agent.yaml')
  .option('--force', 'writes over a file that is there')
  .option('--agent <name>', 'name of this agent; the name of the machine when not said')
  .option('--site <name>', 'where the cameras are')
  .option('--spool <folder>', 'where frames wait')
  .option('--kafka <brokers>', 'host:port, comma separated')
  .option('--registry <url>', 'schema registry')
  .option('--s3 <url>', 'S3 endpoint, or aws')
  .option('--find', 'looks for ONVIF cameras in the networks of this machine')
  .option('--camera <name=address>', 'a camera; may be said several times', collect, [])
  .action(init)
program
  .command('find')
  .description('looks for ONVIF cameras in the networks of this machine')
  .action(async () => {
    for (const { address } of await find()) print(address)
  })
program
  .command('check')
  .description('looks at the configuration, every camera, disk, clock, S3, Kafka and registry; says what to do; exit 1 when something must be done')
  .option(...config)
  .action(async (flags: { config?: string }) => {
    const checks = await checkAll(readAgentConfig(configFile(flags)))
    print(showChecks(checks))
    if (checks.some(({ verdict }) => verdict === 'wrong')) process.exitCode = 1
  })
program
  .command('run')
  .description('runs until Ctrl-C; cameras follow the file when it changes')
  .option(...config)
  .action((flags: { config?: string }) => runAgent(configFile(flags)))
program
  .command('status')
  .description('what the agent that runs here does')
  .option(...config)
  .option('--json', 'for programs')
  .action(status)
program
  .command('record <camera>')
  .description('records a clip, with the seconds before that the camera keeps')
  .option(...config)
  .option('--seconds <number>', 'how long to go on', readSeconds, 10)
  .action((camera: string, flags: { config?: string; seconds: number }) => order(flags, `/cameras/${encodeURIComponent(camera)}/record/${flags.seconds}`))
program
  .command('capture <camera>')
  .description('keeps the next picture of a camera, whatever its motion gate says')
  .option(...config)
  .action((camera: string, flags: { config?: string }) => order(flags, `/cameras/${encodeURIComponent(camera)}/capture`))
program
  .command('snapshot <camera>')
  .description('one picture of a camera to standard output, without spool or cloud: frameloop-agent snapshot door > door.jpg')
  .option(...config)
  .action(async (camera: string, flags: { config?: string }) => {
    if (process.stdout.isTTY) throw new Fault('REQUEST_INVALID', `A picture is no text for a terminal: frameloop-agent snapshot ${camera} > ${camera}.jpg`)
    const { bytes } = await takeSnapshot(readAgentConfig(configFile(flags)), camera)
    await new Promise<void>((done, failed) => process.stdout.write(bytes, (error) => (error ? failed(error) : done())))
  })
program
  .command('install-service')
  .description('installs a systemd unit: own user, hardened, watchdog, restarts')
  .option(...config)
  .option('--user <name>', 'account it runs under', 'frameloop-agent')
  .option('--print', 'only prints the unit')
  .action(async (flags: ServiceFlags & { config?: string; print?: boolean }) => {
    const file = resolve(configFile(flags))
    const settings = readAgentConfig(file, withoutSecrets)
    print(flags.print ? unitOf(file, settings, flags) : await installService(file, settings, flags))
  })

program
  .command('make-key <file>')
  .description('makes a signing key in a file of its own (setting signingKey) and prints its public half, for `frameloop agents key` in the cloud')
  .action((file: string) => {
    const { privatePem, publicPem } = makeKeys()
    // never over one that is in use
    writeFileSync(file, privatePem, { mode: 0o600, flag: 'wx' })
    print(publicPem.trim())
  })

const spool = program.command('spool').description('the queue on disk, also while the agent runs')
const openToLook = (flags: { readonly config?: string }): Spool => Spool.inspect(readAgentConfig(configFile(flags), withoutSecrets).spool.folder, openLog('spool', 'error'))
spool
  .command('list')
  .description('frames that wait, and what was captured, delivered and lost in all')
  .option(...config)
  .option('--json', 'one line of JSON per frame')
  .action((flags: { config?: string; json?: boolean }) => print(showSpool(openToLook(flags), flags.json ?? false)))
spool
  .command('export <folder>')
  .description('copies of the frames that wait, as files; the spool stays as it is')
  .option(...config)
  .option('--camera <name>', 'only of this camera')
  .action(async (folder: string, flags: { config?: string; camera?: string }) => {
    const { frames, bytes, gone } = await exportFrames(openToLook(flags), resolve(folder), flags.camera)
    print(`${frames} frames, ${showBytes(bytes)}, in ${resolve(folder)}${gone > 0 ? `; ${gone} more were delivered, moved or given up meanwhile` : ''}`)
  })
spool
  .command('verify')
  .description('proves that what was captured is delivered, waiting or told as lost, and reads every waiting frame; exit 1 otherwise')
  .option(...config)
  .action(async (flags: { config?: string }) => {
    const looked = openToLook(flags)
    const unreadable = await looked.damaged()
    print(showSpool(looked, false))
    const unaccounted = looked.account.reduce((sum, account) => sum + account.unaccounted, 0)
    for (const { cameraId, seq } of unreadable) print(`frame ${seq} of ${cameraId} does not hash to what was captured`)
    if (unaccounted !== 0 || unreadable.length > 0) process.exitCode = 1
    print(process.exitCode === 1 ? `NOT CLEAN: ${unaccounted} unaccounted, ${unreadable.length} damaged` : 'clean: captured = delivered + waiting + lost')
  })

try {
  await program.parseAsync()
} catch (thrown) {
  const error = toError(thrown)
  process.stderr.write(`frameloop-agent: ${redact(error.message)}\n${error instanceof Fault ? `${error.hint}\n` : ''}`)
  process.exitCode = 1
}
