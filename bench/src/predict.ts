/**
 * Predictions over HTTP, WebSocket and binary tensors: our routes and engine against FastAPI with ONNX Runtime and with
 * TensorFlow, and LitServe, all with the same weights, on the same cores as the client. Answers are compared first.
 */
import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { until } from '@frameloop/kit/retry'
import sharp from 'sharp'
import { WebSocket } from 'ws'
import { freePort } from '../../deploy/e2e/network-camera.ts'
import { bundle } from '../../deploy/setup/build.mjs'
import { build } from '../../deploy/src/home.ts'
import { closedLoop, requestBytes } from './load.ts'
import { cpuMs, median } from './measure.ts'
import { enlargedFrames } from './pictures.ts'
import type { PredictJob } from './predict-runner.ts'
import { rivalPython } from './rivals.ts'

const rounds = 5
/** Rounds before that count for nothing: a server is compiled while it works, or warms its caches. */
const roundsBefore = 2
const seconds = 4
const connections = 16
const sizes = [
  { name: '2 kB', width: 64, height: 64, quality: 80 },
  { name: '34 kB', width: 640, height: 480, quality: 70 },
  { name: '199 kB', width: 1920, height: 1080, quality: 70 },
] as const
const ways = ['frameloop', 'FastAPI onnxruntime', 'FastAPI tensorflow', 'LitServe'] as const
type Way = (typeof ways)[number]
const path = '/v1/models/bench/predict?camera=c&zone=z'

const ask = (port: number, picture: Buffer): Promise<Response> =>
  fetch(`http://127.0.0.1:${port}${path}`, { method: 'POST', headers: { 'content-type': 'image/jpeg' }, body: new Uint8Array(picture) })

interface Server {
  readonly port: number
  readonly process: ChildProcess
}

async function end({ process: child }: Server): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = once(child, 'exit')
  // its workers too
  if (child.pid) process.kill(-child.pid, 'SIGTERM')
  const timer = setTimeout(() => child.pid && process.kill(-child.pid, 'SIGKILL'), 5_000)
  await ended
  clearTimeout(timer)
}

export async function benchPredict(say: (text: string) => void): Promise<object> {
  const python = rivalPython(say, '-predict')
  await bundle({ 'predict-runner': 'bench/src/predict-runner.ts', 'engine-thread': 'cloud/src/serve/engine-thread.ts' }, join(build, 'bench'))
  const runner = join(build, 'bench/predict-runner.mjs')
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-predict-'))
  const model = join(folder, 'model')
  const job = (more: Partial<PredictJob>): string => JSON.stringify({ folder: model, ...more } satisfies PredictJob)
  const { jpegs } = enlargedFrames(mkdtempSync(join(folder, 'frames-')), 20, 32)
  const picturesOf = new Map<string, Buffer[]>()
  for (const { name, width, height, quality } of sizes) {
    const made = jpegs.map((jpeg, at) => {
      const picture = sharp(jpeg)
      // a zone of its own of each frame
      const cut = width === 64 ? picture.extract({ left: 100 + 37 * at, top: 300, width: 256, height: 256 }) : picture
      return cut.resize(width, height, { fit: 'fill' }).jpeg({ quality }).toBuffer()
    })
    picturesOf.set(name, await Promise.all(made))
  }
  const raw = await Promise.all((picturesOf.get('2 kB') ?? []).map((crop) => sharp(crop).removeAlpha().raw().toBuffer()))
  const writing = spawn(process.execPath, [runner, '-'], { stdio: ['pipe', 'ignore', 'inherit'] })
  writing.stdin.end(job({ write: raw.map((pixels) => pixels.toString('base64')) }))
  await once(writing, 'exit')
  const openOurs = async (): Promise<Server> => {
    const port = await freePort()
    const child = fork(runner, [job({ port })], { detached: true })
    await once(child, 'message')
    return { port, process: child }
  }
  const openRival = async (engine: string): Promise<Server> => {
    const port = await freePort()
    const child = spawn(python, [fileURLToPath(new URL('../rivals/predict.py', import.meta.url)), engine, String(port), String(availableParallelism()), model], {
      detached: true,
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    const [picture = Buffer.alloc(0)] = picturesOf.get('2 kB') ?? []
    const answers = await until(
      () =>
        ask(port, picture).then(
          ({ ok }) => ok || undefined,
          () => undefined,
        ),
      120_000,
      200,
    )
    if (!answers) throw new Error(`${engine} did not answer within two minutes`)
    return { port, process: child }
  }
  const openers: Readonly<Record<Way, () => Promise<Server>>> = {
    frameloop: openOurs,
    'FastAPI onnxruntime': () => openRival('onnxruntime'),
    'FastAPI tensorflow': () => openRival('tensorflow'),
    LitServe: () => openRival('litserve'),
  }
  const found: Record<string, Record<Way, { readonly perSecond: number; readonly cpuMs: number; readonly p99: number }[]>> = {}
  const servers = new Map<Way, Server>()
  try {
    for (const way of ways) servers.set(way, await openers[way]())
    /** Only one is awake while it is measured: LitServe looks for work all the time, on the cores of the others. */
    const wake = (awake: readonly Way[]): void => {
      for (const [way, { process: child }] of servers) if (child.pid) process.kill(-child.pid, awake.includes(way) ? 'SIGCONT' : 'SIGSTOP')
    }
    const requestsTo = (way: Way, size: string): Buffer[] =>
      (picturesOf.get(size) ?? []).map((picture) => requestBytes(servers.get(way)?.port ?? 0, path, { 'content-type': 'image/jpeg' }, picture))
    for (const { name } of sizes) {
      const bytes = (picturesOf.get(name) ?? []).reduce((sum, { length }) => sum + length, 0) / jpegs.length
      const classes = new Map<Way, string[]>()
      for (const way of ways) {
        const answers = (picturesOf.get(name) ?? []).map(async (picture) => {
          const answer = await ask(servers.get(way)?.port ?? 0, picture)
          return ((await answer.json()) as { answer: string }).answer
        })
        classes.set(way, await Promise.all(answers))
      }
      const ours = classes.get('frameloop') ?? []
      for (const way of ways.slice(1)) {
        const same = ours.filter((answer, at) => answer === classes.get(way)?.[at]).length / ours.length
        if (same < 0.99) throw new Error(`${way} gives the same class for ${Math.round(same * 100)} % of ${name} pictures: the comparison is void`)
      }
      say(`${name}: ${jpegs.length} pictures of ${Math.round(bytes / 100) / 10} kB, the same class from all (${new Set(ours).size} classes)`)
      found[name] = { frameloop: [], 'FastAPI onnxruntime': [], 'FastAPI tensorflow': [], LitServe: [] }
      for (let round = 0; round < roundsBefore + rounds; round += 1) {
        for (const way of round % 2 === 0 ? ways : [...ways].reverse()) {
          const { port = 0, process: child } = servers.get(way) as Server
          wake([way])
          const before = cpuMs(child.pid ?? 0)
          const { perSecond, p99, answered } = await closedLoop(port, requestsTo(way, name), connections, seconds)
          if (round >= roundsBefore) found[name]?.[way].push({ perSecond, p99, cpuMs: (cpuMs(child.pid ?? 0) - before) / answered })
        }
      }
      wake(ways)
      say(
        ways
          .map((way) => {
            const list = found[name]?.[way] ?? []
            const of = (pick: (one: (typeof list)[number]) => number): number => median(list.map(pick))
            return `${way} ${Math.round(of(({ perSecond }) => perSecond))}/s, ${of(({ cpuMs: cpu }) => cpu).toFixed(2)} CPU ms, p99 ${of(({ p99 }) => p99).toFixed(1)} ms`
          })
          .join('; '),
      )
    }
    const ratio = (size: string, to: Way): number[] =>
      (found[size]?.frameloop ?? []).map(({ perSecond }, at) => perSecond / (found[size]?.[to][at]?.perSecond ?? 1)).sort((a, b) => a - b)
    for (const { name } of sizes)
      for (const way of ways.slice(1)) {
        const list = ratio(name, way)
        say(`${name}: ${median(list).toFixed(2)} x ${way} (${list[0]?.toFixed(2)} to ${list.at(-1)?.toFixed(2)})`)
      }
    for (const way of ways.slice(1)) {
      await end(servers.get(way) as Server)
      servers.delete(way)
    }
    const { port, process: ours } = servers.get('frameloop') as Server
    const crops = picturesOf.get('2 kB') ?? []

    // a WebSocket with 64 pictures ahead, against the engine asked from inside its own process
    const [streams, inside]: [{ perSecond: number; cpuMs: number }[], { perSecond: number; cpuMs: number }[]] = [[], []]
    const measured = async (act: () => Promise<number>): Promise<{ perSecond: number; cpuMs: number }> => {
      const before = cpuMs(ours.pid ?? 0)
      const perSecond = await act()
      return { perSecond, cpuMs: (cpuMs(ours.pid ?? 0) - before) / (perSecond * seconds) }
    }
    for (let round = 0; round < rounds; round += 1) {
      streams.push(await measured(() => streamOf(port, crops, seconds)))
      inside.push(
        await measured(async () => {
          const told = once(ours, 'message')
          ours.send({ kind: 'inProcess', pictures: crops.map((crop) => crop.toString('base64')), ahead: 64, seconds })
          return ((await told)[0] as { perSecond: number }).perSecond
        }),
      )
    }
    const streamRatio = streams.map(({ perSecond }, at) => perSecond / (inside[at]?.perSecond ?? 1)).sort((a, b) => a - b)
    const streamCpuRatio = streams.map(({ cpuMs: cpu }, at) => (inside[at]?.cpuMs ?? 0) / cpu).sort((a, b) => a - b)
    const shown = (list: readonly { perSecond: number; cpuMs: number }[]): string =>
      `${Math.round(median(list.map(({ perSecond }) => perSecond)))}/s, ${median(list.map(({ cpuMs: cpu }) => cpu)).toFixed(3)} CPU ms`
    say(
      `a WebSocket: ${shown(streams)}, the engine from inside ${shown(inside)}: ${median(streamRatio).toFixed(2)} x (${streamRatio[0]?.toFixed(2)} to ${streamRatio.at(-1)?.toFixed(2)}), by CPU time of the server ${median(streamCpuRatio).toFixed(2)} x`,
    )

    const tensors = raw.map((bytes) => {
      const head = Buffer.from(
        JSON.stringify({
          inputs: [{ name: 'pixels', shape: [1, 64, 64, 3], datatype: 'UINT8', parameters: { binary_data_size: bytes.length } }],
          outputs: [{ name: 'scores', parameters: { binary_data: true } }],
          parameters: { reference: 'c z' },
        }),
      )
      return requestBytes(
        port,
        '/v2/models/bench/infer',
        { 'inference-header-content-length': String(head.length), 'content-type': 'application/octet-stream' },
        Buffer.concat([head, bytes]),
      )
    })
    const tensorRuns: { readonly perSecond: number; readonly p99: number; readonly cpuMs: number }[] = []
    for (let round = 0; round <= rounds; round += 1) {
      const before = cpuMs(ours.pid ?? 0)
      const { perSecond, p99, answered } = await closedLoop(port, tensors, connections, seconds)
      if (round > 0) tensorRuns.push({ perSecond, p99, cpuMs: (cpuMs(ours.pid ?? 0) - before) / answered })
    }
    say(
      `tensors of 64x64x3 by v2 binary: ${Math.round(median(tensorRuns.map(({ perSecond }) => perSecond)))}/s, ${median(tensorRuns.map(({ cpuMs: cpu }) => cpu)).toFixed(2)} CPU ms`,
    )
    return { connections, seconds, found, stream: { streams, inside, ratio: streamRatio, cpuRatio: streamCpuRatio }, tensors: tensorRuns }
  } finally {
    for (const server of servers.values()) await end(server)
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Answers a second over one WebSocket that always has as many pictures under way as it may. */
async function streamOf(port: number, pictures: readonly Buffer[], forSeconds: number): Promise<number> {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/stream`, { perMessageDeflate: false })
  await once(socket, 'open')
  const json = Buffer.from('{"camera":"c","zone":"z"}')
  const head = Buffer.alloc(4)
  head.writeUInt32BE(json.length)
  const messages = pictures.map((picture) => Buffer.concat([head, json, picture]))
  let [sent, answered, until] = [0, 0, 0]
  const next = (): void => {
    socket.send(messages[sent % messages.length] as Buffer)
    sent += 1
  }
  return new Promise((resolve, reject) => {
    socket.on('error', reject)
    socket.on('message', (data: Buffer) => {
      const { kind, credit = 0, detail } = JSON.parse(data.toString('utf8')) as { kind: string; credit?: number; detail?: string }
      if (kind === 'error') reject(new Error(detail))
      if (kind === 'ready') {
        until = performance.now() + forSeconds * 1000
        for (let at = 0; at < credit; at += 1) next()
        return
      }
      answered += 1
      if (performance.now() < until) next()
      else if (answered === sent) {
        socket.close()
        resolve(answered / forSeconds)
      }
    })
    socket.send('{"task":"bench"}')
  })
}
