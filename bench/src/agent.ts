/**
 * The agent: frames made durable against raw appends of the same bytes, delivered to S3 against a bare loop of PUTs,
 * four streams of 25 pictures a second from pipe to disk, and 1 to 64 cameras.
 */
import { spawn } from 'node:child_process'
import { createHash, createHmac } from 'node:crypto'
import { closeSync, mkdtempSync, rmSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type CameraTools, cameraMetrics, openCamera, runCamera } from '@frameloop/edge-agent/camera'
import type { FrameHead } from '@frameloop/edge-agent/spool/contents'
import { type Disk, realDisk } from '@frameloop/edge-agent/spool/disk'
import { Spool } from '@frameloop/edge-agent/spool/spool'
import { runUploader } from '@frameloop/edge-agent/upload/uploader'
import { sha256Hex } from '@frameloop/kit/digest'
import { openLog } from '@frameloop/kit/log'
import { openMetrics } from '@frameloop/kit/metrics'
import { jpegsOf } from '@frameloop/kit/mpjpeg'
import { type ObjectStore, objectStoreOf } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import { mintEpoch } from '@frameloop/schemas/ids'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { median } from './measure.ts'
import { enlargedFrames, footageFrames } from './pictures.ts'

const pairs = 24
const framesPerPair = 256
const inFlight = 32
/** Pieces up to here are heads, larger ones frames. */
const headLimit = 2_000
const uploads = 600
const uploadRounds = 10
/** Rounds before that count for nothing: an agent of four cameras has sent more than these after ten minutes. */
const uploadsBefore = 4
const streams = 4
const streamSeconds = 20
const streamRate = 25
const log = openLog('bench', 'silent')

export const headOf = (epoch: string, seq: number, sha256: string, cameraId = 'bench'): FrameHead =>
  ({
    ...{ cameraId, epoch, seq, kind: 'image', extension: 'jpg', capturedAt: Date.now(), mediaOffsetUs: null, width: 1920, height: 1080 },
    ...{ sourceName: 'bench', sha256, traceparent: `00-${'1'.repeat(32)}-${'1'.repeat(16)}-01` },
  }) as FrameHead

/** Notes the sizes of the pieces that are written between two syncs. */
function counting(batches: number[][]): Disk {
  let open: number[] = []
  return {
    ...realDisk,
    async write(file, parts) {
      await realDisk.write(file, parts)
      open.push(...parts.map(({ length }) => length))
    },
    async sync(file) {
      await realDisk.sync(file)
      batches.push(open)
      open = []
    },
  }
}

export const shown = (values: readonly number[]): string => {
  const sorted = [...values].sort((a, b) => a - b)
  return `${median(values).toFixed(2)} x (${sorted[0]?.toFixed(2)} to ${sorted.at(-1)?.toFixed(2)})`
}

/** Durable appends: the spool, then the same bytes in the same pieces with as many syncs, by nobody but the disk. */
async function benchAppend(folder: string, pictures: readonly Buffer[], say: (text: string) => void): Promise<object> {
  const digests = pictures.map((picture) => sha256Hex(picture))
  const [ratios, perSync]: [number[], number[]] = [[], []]
  /** What the spool wrote between two syncs the last time. */
  let written: readonly (readonly number[])[] = []
  for (let pair = 0; pair <= pairs; pair += 1) {
    const [spoolFolder, rawFolder] = [join(folder, `spool-${pair}`), join(folder, `raw-${pair}`)]
    const batches: number[][] = []
    const spool = await Spool.open({ folder: spoolFolder, capacity: 4_000_000_000, segmentBytes: 4_000_000_000, disk: counting(batches) }, log)
    const first = batches.length
    const epoch = mintEpoch()
    // what a camera has to say of its frames is there before, as the pieces of the other way are
    const heads = Array.from({ length: framesPerPair + 1 }, (_, seq) => headOf(epoch, seq, digests[seq % pictures.length] ?? ''))
    const bySpool = async (): Promise<number> => {
      const since = performance.now()
      let seq = 0
      const worker = async (): Promise<void> => {
        while (seq < framesPerPair) {
          seq += 1
          await spool.append(heads[seq] as FrameHead, pictures[seq % pictures.length] as Buffer)
        }
      }
      await Promise.all(Array.from({ length: inFlight }, worker))
      return performance.now() - since
    }
    const byDisk = async (): Promise<number> => {
      const since = performance.now()
      const file = realDisk.create(rawFolder)
      let at = 0
      for (const pieces of written) {
        // frames in their turn, as the spool gets them, and heads out of one
        const parts = pieces.map((bytes) => (pictures[bytes > headLimit ? ++at % pictures.length : 0] as Buffer).subarray(0, bytes))
        await realDisk.write(file, parts)
        await realDisk.sync(file)
      }
      closeSync(file)
      return performance.now() - since
    }
    // whoever comes second finds a disk that is still busy: each is it every other time
    const isFirst = pair % 2 === 0
    const before = isFirst ? 0 : await byDisk()
    const ours = await bySpool()
    written = batches.slice(first)
    const raw = isFirst ? await byDisk() : before
    await spool.close()
    rmSync(spoolFolder, { recursive: true })
    rmSync(rawFolder)
    if (pair === 0) continue
    ratios.push(raw / ours)
    perSync.push(framesPerPair / written.length)
  }
  say(`durable appends: ${shown(ratios)} raw appends of the same bytes with as many syncs; ${median(perSync).toFixed(1)} frames per sync`)
  return { ratios, perSync }
}

/** A PUT whose signature stands in its address (AWS Signature Version 4, "Authenticating Requests: Using Query Parameters"). */
function signedPut(endpoint: URL, bucket: string, key: string, id: string, secret: string): string {
  const now = new Date().toISOString().replace(/[-:]|\.\d+/g, '')
  const scope = `${now.slice(0, 8)}/us-east-1/s3/aws4_request`
  const query = new URLSearchParams({
    ...{ 'X-Amz-Algorithm': 'AWS4-HMAC-SHA256', 'X-Amz-Credential': `${id}/${scope}`, 'X-Amz-Date': now },
    ...{ 'X-Amz-Expires': '3600', 'X-Amz-SignedHeaders': 'host' },
  }).toString()
  const canonical = ['PUT', `/${bucket}/${key}`, query, `host:${endpoint.host}`, '', 'host', 'UNSIGNED-PAYLOAD'].join('\n')
  const text = ['AWS4-HMAC-SHA256', now, scope, createHash('sha256').update(canonical).digest('hex')].join('\n')
  const hmac = (secretKey: string | Buffer, data: string): Buffer => createHmac('sha256', secretKey).update(data).digest()
  const signing = ['us-east-1', 's3', 'aws4_request'].reduce((made, part) => hmac(made, part), hmac(`AWS4${secret}`, now.slice(0, 8)))
  return `/${bucket}/${key}?${query}&X-Amz-Signature=${hmac(signing, text).toString('hex')}`
}

async function benchUpload(folder: string, pictures: readonly Buffer[], env: Readonly<Record<string, string>>, say: (text: string) => void): Promise<object> {
  const store = objectStoreOf(env)
  const endpoint = new URL(env['S3_ENDPOINT'] ?? '')
  const identity = { agentId: 'bench', siteId: 'bench', bucketPrefix: 'frameloop' }
  const digests = pictures.map((picture) => sha256Hex(picture))
  const concurrency = 8
  const ratios: number[] = []
  const toPlain: number[] = []
  const toChecked: number[] = []
  for (let round = 0; round < uploadsBefore + uploadRounds; round += 1) {
    const spool = await Spool.open({ folder: join(folder, `upload-${round}`), capacity: 4_000_000_000, segmentBytes: 16_000_000 }, log)
    const epoch = mintEpoch()
    await Promise.all(Array.from({ length: uploads }, (_, n) => spool.append(headOf(epoch, n + 1, digests[n % pictures.length] ?? ''), pictures[n % pictures.length] as Buffer)))
    const stop = new AbortController()
    const ours = async (): Promise<number> => {
      const since = performance.now()
      const running = runUploader(
        spool,
        store,
        identity,
        () => ({ concurrency, limit: 0, windows: [], outside: 'live' }),
        { uploads: new Map(), announcements: '' },
        log,
        stop.signal,
      )
      await until(() => [...spool.entries].every(({ stored }) => stored !== undefined) || undefined, 300_000, 5)
      const took = performance.now() - since
      stop.abort()
      await running
      return took
    }
    const bare = async (what: string, headersOf: (n: number) => Readonly<Record<string, string>>): Promise<number> => {
      const agent = new Agent({ keepAlive: true, maxSockets: concurrency })
      const paths = Array.from({ length: uploads }, (_, n) =>
        signedPut(endpoint, 'frameloop-raw', `bench-${what}/camera/2026/11/25/12/${round}-${epoch}-${n}.jpg`, env['AWS_ACCESS_KEY_ID'] ?? '', env['AWS_SECRET_ACCESS_KEY'] ?? ''),
      )
      const since = performance.now()
      let at = 0
      const worker = async (): Promise<void> => {
        for (let n = at++; n < uploads; n = at++) {
          const body = pictures[n % pictures.length] as Buffer
          await new Promise<void>((resolve, reject) => {
            const asked = request(
              { host: endpoint.hostname, port: endpoint.port, path: paths[n], method: 'PUT', agent, headers: { 'content-length': body.length, ...headersOf(n) } },
              (response) => {
                response.resume()
                response.on('end', () => (response.statusCode === 200 ? resolve() : reject(new Error(`PUT was answered with ${response.statusCode}`))))
              },
            )
            asked.on('error', reject)
            asked.end(body)
          })
        }
      }
      await Promise.all(Array.from({ length: concurrency }, worker))
      agent.destroy()
      return performance.now() - since
    }
    // what is asked of the store is what ours asks: a condition, a type; and beside it a loop that asks for nothing
    const conditions = { 'if-none-match': '*', 'content-type': 'image/jpeg' }
    const same = (): Promise<number> => bare('same', () => conditions)
    const [first, second] = round % 2 === 0 ? [ours, same] : [same, ours]
    const [a, b] = [await first(), await second()]
    const [took, sameTook] = round % 2 === 0 ? [a, b] : [b, a]
    const plainTook = await bare('plain', () => ({}))
    // what it would cost without us to have the store check what arrives, and keep who took it
    const checkedTook = await bare('checked', (n) => ({
      ...conditions,
      'x-amz-checksum-sha256': Buffer.from(digests[n % pictures.length] ?? '', 'hex').toString('base64'),
      ...Object.fromEntries(
        Object.entries({ ...headOf(epoch, n + 1, digests[n % pictures.length] ?? '') })
          .slice(0, 9)
          .map(([name, value]) => [`x-amz-meta-${name.toLowerCase()}`, String(value)]),
      ),
    }))
    await spool.close()
    if (round >= uploadsBefore) {
      ratios.push(sameTook / took)
      toPlain.push(plainTook / took)
      toChecked.push(checkedTook / took)
    }
    say(
      `uploads, round ${round}: ${(sameTook / took).toFixed(2)} x the bare loop, ${(plainTook / took).toFixed(2)} x one without conditions, ${(checkedTook / took).toFixed(2)} x one that is checked`,
    )
  }
  store.close()
  say(
    `spool to S3: ${shown(ratios)} a bare keep-alive loop of PUTs (${uploads} frames of ${Math.round((pictures[0]?.length ?? 0) / 1000)} kB, ${concurrency} at a time), ${shown(toPlain)} one without conditions, ${shown(toChecked)} one whose content the store checks, as it does ours`,
  )
  return { ratios, toPlain, toChecked }
}

/** Writes mpjpeg to its standard output, `rate` pictures a second from `at` on, whatever the reader does. */
const feeder = `
const { readFileSync } = require('node:fs')
const [folder, count, rate, seconds, at] = process.argv.slice(1)
const parts = Array.from({ length: Number(count) }, (_, n) => {
  const body = readFileSync(folder + '/' + n + '.jpg')
  return Buffer.concat([Buffer.from('--ffmpeg\\r\\nContent-type: image/jpeg\\r\\nContent-length: ' + body.length + '\\r\\n\\r\\n'), body, Buffer.from('\\r\\n')])
})
let n = 0
const next = () => {
  if (n >= rate * seconds) return process.stdout.end()
  process.stdout.write(parts[n % parts.length])
  n += 1
  setTimeout(next, Number(at) + n * 1000 / rate - Date.now())
}
setTimeout(next, Number(at) - Date.now())
`

interface Latencies {
  readonly frames: number
  readonly p50: number
  readonly p99: number
}

async function benchStreams(folder: string, pictureFolder: string, count: number, say: (text: string) => void): Promise<object> {
  /** From the moment a picture is due to the moment it is durable. */
  const drive = async (durable: (stream: number, bytes: Buffer) => Promise<unknown>): Promise<Latencies> => {
    const latencies: number[] = []
    const at = Date.now() + 1_500
    await Promise.all(
      Array.from({ length: streams }, async (_, stream) => {
        // their pictures are due a quarter of their distance after each other
        const begin = at + (stream * 1000) / streamRate / streams
        const child = spawn(process.execPath, ['-e', feeder, pictureFolder, String(count), String(streamRate), String(streamSeconds), String(begin)], {
          stdio: ['ignore', 'pipe', 'inherit'],
        })
        const waiting: Promise<unknown>[] = []
        let n = 0
        for await (const bytes of jpegsOf(child.stdout)) {
          const due = begin + (n * 1000) / streamRate
          n += 1
          waiting.push(durable(stream, bytes).then(() => latencies.push(Date.now() - due)))
        }
        await Promise.all(waiting)
      }),
    )
    const sorted = latencies.sort((a, b) => a - b)
    return { frames: sorted.length, p50: sorted[Math.floor(sorted.length / 2)] ?? 0, p99: sorted[Math.floor(sorted.length * 0.99)] ?? 0 }
  }
  const [ratios, ours, bares]: [number[], Latencies[], Latencies[]] = [[], [], []]
  for (let round = 0; round < 3; round += 1) {
    const spool = await Spool.open({ folder: join(folder, `stream-${round}`), capacity: 4_000_000_000, segmentBytes: 16_000_000 }, log)
    const epochs = Array.from({ length: streams }, () => mintEpoch())
    const seqs = new Array<number>(streams).fill(0)
    const bySpool = () =>
      drive((stream, bytes) => {
        seqs[stream] = (seqs[stream] ?? 0) + 1
        return spool.append(headOf(epochs[stream] ?? '', seqs[stream] ?? 0, sha256Hex(bytes), `stream-${stream}`), bytes)
      })
    const byDisk = async () => {
      const file = realDisk.create(join(folder, `bare-${round}`))
      let queue: { readonly bytes: Buffer; readonly done: () => void }[] = []
      let flushing = false
      const flush = async (): Promise<void> => {
        flushing = true
        while (queue.length > 0) {
          const batch = queue
          queue = []
          await realDisk.write(
            file,
            batch.map(({ bytes }) => bytes),
          )
          await realDisk.sync(file)
          for (const { done } of batch) done()
        }
        flushing = false
      }
      const found = await drive(
        (_, bytes) =>
          new Promise<void>((done) => {
            queue.push({ bytes, done })
            if (!flushing) void flush()
          }),
      )
      closeSync(file)
      return found
    }
    const [first, second] = round % 2 === 0 ? [await bySpool(), await byDisk()] : [await byDisk(), await bySpool()]
    const [our, bare] = round % 2 === 0 ? [first, second] : [second, first]
    await spool.close()
    ours.push(our)
    bares.push(bare)
    ratios.push(our.p99 / bare.p99)
    say(`streams, round ${round + 1}: ${our.frames} of ${streams * streamRate * streamSeconds} frames durable, p99 ${our.p99} ms; bare group commit p99 ${bare.p99} ms`)
  }
  say(`${streams} streams at ${streamRate} a second from pipe to disk: p99 ${shown(ratios)} bare group commit of the same bytes`)
  return { ratios, ours, bares }
}

interface ManyCameras {
  readonly cameras: number
  readonly frames: number
  readonly cpuMs: number
  readonly residentMb: number
}

/** Cameras whose pictures are there already: what is measured is the agent, not a simulated street. `rate`: frames a second of all of them together, evenly in time. */
async function runManyCameras(count: number, rate: number, seconds: number, folder: string, pictures: readonly Buffer[], store: ObjectStore): Promise<ManyCameras> {
  const spool = await Spool.open({ folder, capacity: 4_000_000_000, segmentBytes: 16_000_000 }, log)
  const stop = new AbortController()
  const tools: CameraTools = { spool, folder, log, ffmpeg: 'ffmpeg', ffprobe: 'ffprobe', metrics: cameraMetrics(openMetrics('bench')) }
  const begin = performance.now()
  const cameras = Array.from({ length: count }, (_, n) => {
    const camera = openCamera({ id: `camera-${n}`, address: 'simulator:' })
    const source = {
      kind: 'simulator' as const,
      finishes: true,
      async *pictures(_: unknown, signal: AbortSignal) {
        for (let at = 0; ; at += 1) {
          const due = begin + ((at * count + n) * 1000) / rate
          await sleep(Math.max(0, due - performance.now()), undefined, { signal })
          const bytes = pictures[(at + n) % pictures.length] as Buffer
          yield { bytes, extension: 'jpg', kind: 'image' as const, capturedAt: Date.now(), width: 1920, height: 1080, sourceName: 'bench', newPass: false }
        }
      },
    }
    return { ...camera, source }
  })
  const limits = () => ({ concurrency: 6, limit: 0, windows: [], outside: 'live' }) as const
  const identity = { agentId: `bench-${count}`, siteId: 'bench', bucketPrefix: 'frameloop' }
  const running = [
    ...cameras.map((camera) => runCamera(camera, tools, stop.signal)),
    runUploader(spool, store, identity, limits, { uploads: new Map(), announcements: '' }, log, stop.signal),
  ]
  const captured = (): number => cameras.reduce((sum, { seq }) => sum + seq, 0)
  await sleep(5_000)
  const [before, cpu] = [captured(), process.cpuUsage()]
  await sleep(seconds * 1000)
  const { user, system } = process.cpuUsage(cpu)
  const frames = captured() - before
  const residentMb = process.memoryUsage().rss / 1e6
  stop.abort()
  await Promise.allSettled(running)
  await spool.close()
  return { cameras: count, frames, cpuMs: (user + system) / 1000 / frames, residentMb }
}

async function benchManyCameras(folder: string, pictures: readonly Buffer[], env: Readonly<Record<string, string>>, say: (text: string) => void): Promise<object> {
  const store = objectStoreOf(env)
  const counts = [1, 4, 16, 64]
  let runs = 0
  const run = (count: number, rate: number): Promise<ManyCameras> => runManyCameras(count, rate, 15, join(folder, `cameras-${runs++}`), pictures, store)
  // it counts for nothing
  await run(16, 40)
  const measured = async (rateOf: (count: number) => number) => {
    const found: ManyCameras[] = []
    for (const count of [...counts, ...counts.toReversed()]) {
      const one = await run(count, rateOf(count))
      found.push(one)
      say(`${count} cameras: ${one.frames} frames in 15 s, ${one.cpuMs.toFixed(2)} ms of CPU each, ${one.residentMb.toFixed(0)} MB resident`)
    }
    // up, and down again
    const grows = (from: number) =>
      [0, 1].map((half) => {
        const [few, many] = [from, 64].map((count) => found.filter(({ cameras }) => cameras === count)[half])
        return (many?.cpuMs ?? 0) / (few?.cpuMs ?? 1)
      })
    // up only: what a process has once taken it keeps
    const megabytesPerCamera = ((found[3]?.residentMb ?? 0) - (found[0]?.residentMb ?? 0)) / 63
    return { found, from1To64: grows(1), from16To64: grows(16), megabytesPerCamera }
  }
  const own = await measured((count) => 2 * count)
  say(
    `1 to 64 cameras, each with two frames a second: ${shown(own.from1To64)} the CPU per frame, 16 to 64: ${shown(own.from16To64)}; ${own.megabytesPerCamera.toFixed(2)} MB per camera`,
  )
  // each camera is looked at every ten seconds, however few its frames: what that and all else of a camera takes is seen here
  const same = await measured(() => 40)
  say(`the same 40 frames a second from 1 to 64 cameras: ${shown(same.from1To64)} the CPU per frame`)
  store.close()
  return { own, same }
}

export async function benchAgent(say: (text: string) => void): Promise<object> {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-agent-bench-'))
  await using home = openOwnHome()
  const { jpegs } = enlargedFrames(folder, 30, 24)
  const count = 50
  const small = footageFrames(folder, count)
  try {
    const append = await benchAppend(folder, jpegs, say)
    const stream = await benchStreams(folder, small, count, say)
    const stack = await startOwnStack(home, ['--no-demo'])
    try {
      const env = stack.state.environment
      return {
        append,
        stream,
        upload: await benchUpload(folder, jpegs, env, say),
        cameras: await benchManyCameras(folder, jpegs, env, say),
      }
    } finally {
      await stack.end('SIGTERM')
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
