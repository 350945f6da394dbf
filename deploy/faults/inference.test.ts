/**
 * Bad days of inference: what it needs is away, and what it talks to misbehaves. Frozen means stopped by a signal: connections
 * stand, and nobody answers.
 */
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { deflateSync } from 'node:zlib'
import { type Client, connectTo, type ServedModel } from '@frameloop/client'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { statFields } from '@frameloop/kit/process-identity'
import { until } from '@frameloop/kit/retry'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { type OwnStack, openOwnHome, startOwnStack } from '../e2e/own-stack.ts'
import { root } from '../src/home.ts'

const run = promisify(execFile)
const home = openOwnHome()
let stack: OwnStack
let serve: string
let client: Client
let pool: Pool
let model: ServedModel
let crop: Buffer<ArrayBuffer>
const report: string[] = []

beforeAll(async () => {
  stack = await startOwnStack(home, ['--demo'])
  serve = stack.state.endpoints['serve'] ?? ''
  client = connectTo({ url: serve, WebSocket })
  pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'faults')
  const found = await until(async () => (await client.models())[0], 200_000, 500)
  if (!found) throw new Error('no model serves')
  model = found
  crop = Buffer.from(
    await sharp(Buffer.from(new Uint8Array(64 * 64 * 3).map((_, at) => (at * 37) % 256)), { raw: { width: 64, height: 64, channels: 3 } })
      .jpeg()
      .toBuffer(),
  )
})

afterAll(async () => {
  process.stdout.write(`${report.join('\n')}\n`)
  await pool?.end()
  await stack?.end('SIGTERM')
  await home[Symbol.asyncDispose]()
})

interface Asked {
  readonly p99: number
  readonly count: number
}

/** One question after the other, over HTTP and over a stream, until the signal. Throws with the first that is not answered. */
async function asking(signal: AbortSignal): Promise<Asked> {
  const took: number[] = []
  const stream = client.stream(model.task)
  while (!signal.aborted) {
    const since = performance.now()
    await client.classify(crop, { task: model.task })
    took.push(performance.now() - since)
    await stream.ask(crop)
    await sleep(5)
  }
  stream.close()
  const sorted = took.sort((a, b) => a - b)
  return { p99: sorted[Math.floor(sorted.length * 0.99)] ?? 0, count: sorted.length }
}

async function during(act: () => Promise<void>): Promise<Asked> {
  const stop = new AbortController()
  const asked = asking(stop.signal)
  // awaited below
  asked.catch(() => {})
  try {
    await act()
  } finally {
    stop.abort()
  }
  return asked
}

const readyz = async (): Promise<{ readonly status: number; readonly degraded?: Readonly<Record<string, string>> }> => {
  const response = await fetch(`${serve}/readyz`, { signal: AbortSignal.timeout(20_000) })
  return { ...((await response.json()) as { degraded?: Record<string, string> }), status: response.status }
}

/** It and its children: PostgreSQL answers from processes of their own. */
function family(pid: number): number[] {
  const children = readdirSync('/proc')
    .map(Number)
    .filter((other) => !Number.isNaN(other) && Number(statFields(other)[1]) === pid)
  return [pid, ...children.flatMap(family)]
}
const signalAll = (pids: readonly number[], signal: NodeJS.Signals): void => {
  for (const pid of pids) process.kill(pid, signal)
}

/** Until a frame captured from now on is answered live; how long that takes, ms. */
async function untilLive(): Promise<number> {
  const [since, feed] = [Date.now(), client.feed()]
  const timer = setTimeout(() => feed.close(), 90_000)
  try {
    for await (const message of feed) if (message.kind === 'prediction' && message.frameAt > since) return Date.now() - since
  } finally {
    clearTimeout(timer)
  }
  throw new Error('no live answer within 90 s')
}

test.each([
  ['postgres', 'postgres'],
  ['kafka', undefined],
  ['mlflow', undefined],
  ['s3', undefined],
  ['registry', undefined],
] as const)('while %s is frozen for 15 s the last good model answers over HTTP and WebSocket', async (part, said) => {
  const [frozen, pid] = [family(stack.pidOf(part)), stack.pidOf('serve')]
  signalAll(frozen, 'SIGSTOP')
  try {
    const asked = await during(async () => {
      await sleep(15_000)
      if (said) expect(await readyz()).toMatchObject({ status: 200, degraded: { [said]: expect.any(String) as unknown } })
      else expect((await readyz()).status).toBe(200)
    })
    expect(asked.count).toBeGreaterThan(300)
    report.push(`${part} frozen: ${asked.count} questions answered, p99 ${asked.p99.toFixed(1)} ms`)
  } finally {
    signalAll(frozen, 'SIGCONT')
  }
  // and live answers go on by themselves when it is back
  report.push(`${part}: a live answer ${((await untilLive()) / 1000).toFixed(1)} s later`)
  expect(stack.pidOf('serve')).toBe(pid)
})

test('Kafka is killed five times, and everybody is answered on the connections they have', async () => {
  const pid = stack.pidOf('serve')
  const took: number[] = []
  const asked = await during(async () => {
    for (let kill = 1; kill <= 5; kill += 1) {
      process.kill(stack.pidOf('kafka'), 'SIGKILL')
      took.push(await untilLive())
    }
  })
  expect(stack.pidOf('serve')).toBe(pid)
  report.push(
    `kafka killed 5 times: ${asked.count} questions answered, p99 ${asked.p99.toFixed(1)} ms; live answers ${took.map((ms) => (ms / 1000).toFixed(1)).join(', ')} s later`,
  )
})

/** A socket that upgrades to a WebSocket by hand and then says what it is told. */
async function rawSocket(path: string): Promise<Socket> {
  const { hostname, port } = new URL(serve)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  await once(socket, 'connect')
  socket.write(
    `GET ${path} HTTP/1.1\r\nhost: ${hostname}:${port}\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n`,
  )
  await once(socket, 'data')
  return socket
}
/** A masked text frame; its mask is zero. */
const textFrame = (text: string): Buffer => Buffer.concat([Buffer.from([0x81, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)])
const closed = (socket: Socket, within: number): Promise<boolean> =>
  Promise.race([new Promise<boolean>((resolve) => socket.once('close', () => resolve(true))), sleep(within, false)])

test('whoever answers no ping is closed within two of them, and nobody else notices', async () => {
  const silent = await rawSocket('/v1/feeds')
  silent.resume()
  silent.write(textFrame('{}'))
  const asked = await during(async () => expect(await closed(silent, 40_000)).toBe(true))
  report.push(`no pong: closed; ${asked.count} questions beside it, p99 ${asked.p99.toFixed(1)} ms`)
})

test('a thousand WebSockets that come and go do not slow the others to more than twice', async () => {
  const alone = await during(() => sleep(8_000))
  const beside = await during(async () => {
    const until_ = Date.now() + 8_000
    let opened = 0
    const knock = async (): Promise<void> => {
      while (Date.now() < until_) {
        const socket = await rawSocket('/v1/feeds')
        socket.write(textFrame('{}'))
        opened += 1
        await sleep(30)
        socket.destroy()
      }
    }
    await Promise.all(Array.from({ length: 8 }, knock))
    expect(opened).toBeGreaterThan(1_000)
    report.push(`flood: ${opened} WebSockets in 8 s`)
  })
  report.push(`flood: p99 ${alone.p99.toFixed(1)} ms alone, ${beside.p99.toFixed(1)} ms beside`)
  expect(beside.p99).toBeLessThan(2 * alone.p99 + 5)
})

/** A PNG that says it is `side` pixels wide and high, of zeros: small here, `side` squared there. */
function bombOf(side: number): Buffer {
  const chunk = (type: string, body: Buffer): Buffer => {
    const head = Buffer.alloc(4)
    head.writeUInt32BE(body.length)
    const data = Buffer.concat([Buffer.from(type, 'latin1'), body])
    let crc = ~0
    for (const byte of data) {
      crc ^= byte
      for (let bit = 0; bit < 8; bit += 1) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0)
    }
    const tail = Buffer.alloc(4)
    tail.writeUInt32BE(~crc >>> 0)
    return Buffer.concat([head, data, tail])
  }
  const header = Buffer.alloc(13)
  header.writeUInt32BE(side, 0)
  header.writeUInt32BE(side, 4)
  header.set([8, 2, 0, 0, 0], 8)
  return Buffer.concat([
    Buffer.from('89504e470d0a1a0a', 'hex'),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(Buffer.alloc(20_000_000), { level: 9 })),
    chunk('IEND', Buffer.alloc(0)),
  ])
}

test('bombs are refused at once: pixels by their header, frames by their size, compression never taken', async () => {
  const bomb = bombOf(60_000)
  expect(bomb.length).toBeLessThan(50_000)
  const since = performance.now()
  await expect(client.classify(Buffer.from(bomb), { task: model.task })).rejects.toMatchObject({ code: 'PICTURE_TOO_LARGE', status: 413 })
  expect(performance.now() - since).toBeLessThan(200)
  const { hostname, port } = new URL(serve)
  const socket = new WebSocket(`ws://${hostname}:${port}/v1/stream`, { perMessageDeflate: true })
  await once(socket, 'open')
  expect(socket.extensions).toBe('')
  const ended = once(socket, 'close')
  socket.send(Buffer.alloc(21_000_000))
  expect((await ended)[0]).toBe(1009)
})

test('a model that learned from wrong labels is promoted, found out beside the one before it, and taken back within two minutes', async () => {
  const frameloop = (...args: string[]): Promise<string> =>
    run(process.execPath, [join(root, 'deploy/bin/frameloop.mjs'), ...args], { env: { ...process.env, FRAMELOOP_HOME: home.folder } }).then(({ stdout }) => stdout)
  const serving = async (): Promise<string | undefined> => (await client.models()).find(({ task }) => task === model.task)?.version
  const good = await serving()
  // somebody has mixed up the two classes in all labels there are; those to come are right
  const mixUp = (): Promise<unknown> =>
    pool.query("update labels set label = case label when 'empty' then 'occupied' when 'occupied' then 'empty' else label end where task = $1 and recorded_at < $2", [
      model.task,
      since,
    ])
  const since = new Date()
  await mixUp()
  const trained = JSON.parse(await frameloop('train', model.task, '--wait', '--json')) as { readonly version: string; readonly promoted: boolean }
  await mixUp()
  expect(trained).toMatchObject({ promoted: true })
  expect(await until(async () => ((await serving()) === trained.version ? true : undefined), 20_000, 100), 'the fault has fired').toBe(true)
  const bad = Date.now()
  expect(await until(async () => ((await serving()) === good ? true : undefined), 120_000, 100), 'the one before serves again').toBe(true)
  report.push(`wrong labels: taken back after ${((Date.now() - bad) / 1000).toFixed(1)} s`)
  const { rows } = await pool.query<{ decided_by: string; reason: string }>(
    "select decided_by, reason from promotions where task = $1 and alias = 'champion' order by id desc limit 1",
    [model.task],
  )
  expect(rows).toEqual([
    { decided_by: 'watch', reason: expect.stringMatching(new RegExp(`^version ${trained.version} did not pass its probation: .* balanced accuracy against `)) as unknown },
  ])
  report.push(`wrong labels: ${rows[0]?.reason}`)
  const decisions = await pool.query("select 1 from decisions where task = $1 and decision = 'rollback'", [model.task])
  expect(decisions.rowCount).toBe(1)
  const shadow = async (): Promise<true | undefined> =>
    (await pool.query("select 1 from (select version from promotions where task = $1 and alias = 'shadow' order by id desc limit 1) last where version = ''", [model.task]))
      .rowCount === 1 || undefined
  expect(await until(shadow, 20_000, 200), 'its shadow goes with the probation').toBe(true)
})
