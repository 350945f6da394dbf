/**
 * One 1080p camera at 5 pictures a second with motion gate: CPU time of the agent, its ffmpeg included, against `motion`
 * (Debian) on the same RTSP stream. Both keep JPEGs of what moves; neither uploads.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { until } from '@frameloop/kit/retry'
import type { AgentReported } from '@frameloop/schemas/events'
import { freePort } from '../../deploy/e2e/network-camera.ts'
import { buildMissing } from '../../deploy/setup/build.mjs'
import { build, root } from '../../deploy/src/home.ts'
import { cpuMs, median } from './measure.ts'

const rounds = 3
const seconds = 40
const rate = 5

interface Ran {
  /** Per second of the stream. */
  readonly cpuMs: number
  readonly pictures: number
}

async function openCamera(folder: string): Promise<{ readonly address: string; readonly process: ChildProcess }> {
  const file = join(folder, 'street.h264')
  const video = ['-vf', 'scale=1920:1080', '-r', String(rate), '-t', '60', '-an', '-c:v', 'libx264', '-preset', 'veryfast', '-g', '10', '-bf', '0', '-pix_fmt', 'yuv420p']
  const input = ['-i', join(root, '.frameloop/tools/footage/vtest.avi')]
  await promisify(execFile)('ffmpeg', ['-v', 'error', '-y', ...input, ...video, '-bsf:v', 'h264_metadata=aud=insert', '-f', 'h264', file])
  const port = await freePort()
  const child = spawn('/usr/bin/python3', [join(root, 'deploy/e2e/footage/rtsp_camera.py'), String(port), `/street=${file}@${rate}`], { stdio: ['ignore', 'pipe', 'inherit'] })
  await new Promise<void>((resolve, reject) => {
    child.stdout.on('data', (chunk: Buffer) => chunk.includes('frames') && resolve())
    child.once('exit', (code) => reject(new Error(`the camera ended with ${code}`)))
  })
  return { address: `rtsp://127.0.0.1:${port}/street`, process: child }
}

/** Waits until it keeps pictures, then measures for a while. */
async function measured(child: ChildProcess, pictures: () => Promise<number>): Promise<Ran> {
  const pid = child.pid ?? 0
  if (!(await until(async () => (await pictures()) > 0 || undefined, 60_000, 200))) throw new Error('no picture within a minute')
  const [before, kept] = [cpuMs(pid), await pictures()]
  await sleep(seconds * 1000)
  const ran = { cpuMs: (cpuMs(pid) - before) / seconds, pictures: (await pictures()) - kept }
  const ended = once(child, 'exit')
  child.kill('SIGTERM')
  await ended
  return ran
}

async function runAgent(address: string, folder: string): Promise<Ran> {
  const port = await freePort()
  const file = join(folder, 'agent.json')
  // everything it would deliver to is away, which is normal for an agent
  const away = await freePort()
  const config = {
    ...{ agent: 'bench', port, spool: { folder: join(folder, 'spool'), keepFree: '1 MB' }, registry: { url: `http://127.0.0.1:${away}` } },
    ...{ kafka: { brokers: [`127.0.0.1:${away}`] }, s3: { endpoint: `http://127.0.0.1:${away}`, accessKeyId: 'x', secretAccessKey: 'x' } },
    cameras: [{ id: 'street', address, framesPerSecond: rate, motion: {} }],
  }
  writeFileSync(file, JSON.stringify(config))
  const child = spawn(process.execPath, [join(build, 'agent.mjs'), 'run', '--config', file], { stdio: 'ignore' })
  const status = (): Promise<AgentReported | undefined> =>
    fetch(`http://127.0.0.1:${port}/status`)
      .then((response) => response.json() as Promise<AgentReported>)
      .catch(() => undefined)
  return measured(child, async () => (await status())?.spoolFrames ?? 0)
}

async function runMotion(address: string, folder: string): Promise<Ran> {
  const target = join(folder, 'pictures')
  mkdirSync(target)
  const settings = {
    ...{ daemon: 'off', setup_mode: 'off', log_level: 3, netcam_url: address, width: 1920, height: 1080, framerate: rate },
    // as its documentation recommends, and nothing that it need not do here
    ...{ picture_output: 'on', movie_output: 'off', picture_quality: 75, target_dir: target, stream_port: 0, webcontrol_port: 0, threshold: 8_000, event_gap: 2 },
  }
  const file = join(folder, 'motion.conf')
  writeFileSync(
    file,
    Object.entries(settings)
      .map(([name, value]) => `${name} ${value}\n`)
      .join(''),
  )
  return measured(spawn('motion', ['-n', '-c', file], { stdio: 'ignore' }), async () => readdirSync(target).length)
}

export async function benchMotion(say: (text: string) => void): Promise<object> {
  let version: string
  try {
    version = String(execFileSync('dpkg-query', ['-W', '-f', '${Version}', 'motion']))
  } catch {
    throw new Error('The rival is missing: apt-get install motion')
  }
  await buildMissing()
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-motion-'))
  const camera = await openCamera(folder)
  const found: { readonly agent: Ran; readonly motion: Ran }[] = []
  try {
    for (let round = 1; round <= rounds; round += 1) {
      const of = (name: string): string => {
        const own = join(folder, `${name}-${round}`)
        mkdirSync(own)
        return own
      }
      // each is the first every other time
      const before = round % 2 === 0 ? await runMotion(camera.address, of('motion')) : undefined
      const agent = await runAgent(camera.address, of('agent'))
      const motion = before ?? (await runMotion(camera.address, of('motion')))
      found.push({ agent, motion })
      say(
        `round ${round}: agent ${agent.cpuMs.toFixed(0)} CPU ms a second, ${agent.pictures} pictures kept; motion ${version} ${motion.cpuMs.toFixed(0)}, ${motion.pictures} in ${seconds} s`,
      )
    }
  } finally {
    camera.process.kill('SIGKILL')
    rmSync(folder, { recursive: true, force: true })
  }
  const ratios = found.map(({ agent, motion }) => agent.cpuMs / motion.cpuMs).sort((a, b) => a - b)
  say(`agent: ${median(ratios).toFixed(2)} x the CPU time of motion (${ratios[0]?.toFixed(2)} to ${ratios.at(-1)?.toFixed(2)})`)
  return { motion: version, rate, seconds, found, ratios }
}
