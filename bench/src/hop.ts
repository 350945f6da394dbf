/**
 * One hop, consume → decode → produce, 1 KB values: our runtime at least once and with transactions, against the same client
 * passing bytes through and Kafka's own perf tools. Then the latency with transactions at half of what it can do.
 */
import { execFile, fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { until } from '@frameloop/kit/retry'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { newTraceparent, traceIdOf } from '@frameloop/schemas/trace'
import { readTopic, tail } from '@frameloop/stream-processors/chain/kafka-bus'
import { openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { bundle } from '../../deploy/setup/build.mjs'
import { javaProgram } from '../../deploy/setup/java.mjs'
import { build, tools } from '../../deploy/src/home.ts'
import { stageFlags } from '../../deploy/src/up.ts'
import { aValidated } from './events.ts'
import type { HopJob, HopNews } from './hop-runner.ts'
import { median } from './measure.ts'

const records = 200_000
const rounds = 4
const latencySeconds = 15
const ways = ['bytes', 'codec', 'hop', 'transactions'] as const
type Way = (typeof ways)[number]
const valueBytes = 1_024
const started = promisify(execFile)

/** Kafka's perf tools, fetched when they are missing. */
async function perfTools(say: (text: string) => void): Promise<string> {
  const pom = fileURLToPath(new URL('../rivals/kafka-tools.xml', import.meta.url))
  const folder = join(tools, 'rivals-kafka')
  const stamp = join(folder, 'kafka-tools.xml')
  if (!existsSync(stamp) || readFileSync(stamp, 'utf8') !== readFileSync(pom, 'utf8')) {
    say("fetching Kafka's perf tools (Maven, 40 MB) …")
    await started('mvn', ['-B', '-q', '-f', pom, 'dependency:copy-dependencies', '-DincludeScope=runtime', `-DoutputDirectory=${folder}`])
    writeFileSync(stamp, readFileSync(pom, 'utf8'))
  }
  return join(folder, '*')
}

interface Ran {
  readonly perSecond: number
  /** CPU microseconds of the hop's process per record. */
  readonly cpuUs: number
}

export async function benchHop(say: (text: string) => void): Promise<object> {
  const classPath = await perfTools(say)
  // as processes run: the loader that runs the sources costs something with every function
  await bundle({ 'hop-runner': 'bench/src/hop-runner.ts' }, join(build, 'bench'))
  await using home = openOwnHome()
  const stack = await startOwnStack(home, ['--no-demo'])
  const env = stack.state.environment
  const brokers = env['KAFKA_BROKERS'] ?? ''
  const kafka = openKafka(brokers, 'bench', openLog('bench', 'error'))
  const [producer, admin] = [kafka.producer(), kafka.admin()]
  try {
    await Promise.all([producer.connect(), admin.connect()])
    const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
    const create = (...topics: string[]) =>
      createTopics(
        admin,
        topics.map((topic) => ({ topic, numPartitions: 6 })),
      )
    const input = 'bench.hop.in'
    await create(input)
    const topic = { name: input, event: 'MediaValidated', retention: 3_600_000, compacted: false } as const
    const recordAt = async (seq: number) => {
      const plain = aValidated(seq)
      const padded = { ...plain, sourceName: plain.sourceName.padEnd(valueBytes - 400, '.') }
      return recordOf(codec, topic, padded, { key: plain.cameraId, id: plain.mediaId, time: Date.now(), source: 'bench', traceparent: newTraceparent() })
    }
    for (let at = 0; at < records; at += 2_000)
      await producer.send({ topic: input, acks: -1, messages: await Promise.all(Array.from({ length: 2_000 }, (_, n) => recordAt(at + n))) })
    const one = await recordAt(0)
    say(`${records} records of ${one.value.length} bytes, ${Object.keys(one.headers).length} headers each, 6 partitions, ${rounds} rounds`)

    const open = async (way: Way, name: string, from: string, output: string) => {
      const job: HopJob = { way, name, input: from, output, env }
      const child = fork(join(build, 'bench/hop-runner.mjs'), [JSON.stringify(job)], {
        execArgv: [...stageFlags],
        env: { ...process.env, ...env },
      })
      return {
        child,
        async end() {
          child.kill('SIGKILL')
          if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
        },
      }
    }
    const run = async (way: Way, round: number): Promise<Ran & { readonly output: string }> => {
      const output = `bench.hop.${way}.${round}`
      await create(output)
      const { child, end } = await open(way, `bench-hop-${way}-${round}`, input, output)
      try {
        return await new Promise<Ran & { readonly output: string }>((resolve, reject) => {
          let first = 0
          child.on('exit', () => reject(new Error(`the hop ${way} ended early`)))
          child.on('message', ({ through, at, cpuMs }: HopNews) => {
            if (through === 0) first = at
            if (through >= records) resolve({ perSecond: records / ((at - first) / 1000), cpuUs: (cpuMs * 1000) / records, output })
          })
        })
      } finally {
        await end()
      }
    }
    const digestOf = async (output: string): Promise<string> => {
      const byPartition = new Map<number, ReturnType<typeof createHash>>()
      let count = 0
      for await (const { partition, key, value } of readTopic(brokers, 'frameloop.bench', output, AbortSignal.timeout(60_000))) {
        const hash = byPartition.get(partition) ?? createHash('sha256')
        byPartition.set(partition, hash)
        hash.update(key).update(value)
        count += 1
      }
      return `${count} ${[...byPartition].sort(([a], [b]) => a - b).map(([, hash]) => hash.digest('hex'))}`
    }
    const java = (tool: string, ...args: string[]) =>
      started(javaProgram(), ['-Xmx512m', '-cp', classPath, `org.apache.kafka.tools.${tool}`, ...args], { timeout: 120_000 }).then(({ stdout }) => stdout)
    const perf = async (round: number): Promise<{ readonly produce: number; readonly consume: number }> => {
      const name = `bench.perf.${round}`
      await create(name)
      const settings = [`bootstrap.servers=${brokers}`, 'acks=all', 'linger.ms=5', 'batch.size=131072', 'compression.type=lz4']
      const wrote = await java(
        'ProducerPerformance',
        '--topic',
        name,
        '--num-records',
        String(records),
        '--record-size',
        '1024',
        '--throughput',
        '-1',
        '--producer-props',
        ...settings,
      )
      const read = await java('ConsumerPerformance', '--bootstrap-server', brokers, '--topic', name, '--messages', String(records), '--group', name, '--timeout', '60000')
      const produce = Number(/([\d.]+) records\/sec[^\n]*\n[^\n]*$/.exec(wrote.trim().concat('\n'))?.[1] ?? /([\d.]+) records\/sec/.exec(wrote)?.[1])
      const columns = read.trim().split('\n').at(-1)?.split(',') ?? []
      // fetch.nMsg.sec: without the time it takes to join the group
      return { produce, consume: Number(columns.at(-1)) }
    }
    const found: Record<Way, Ran[]> = { bytes: [], codec: [], hop: [], transactions: [] }
    const tools: { produce: number; consume: number }[] = []
    for (let round = 0; round <= rounds; round += 1) {
      const outputs = new Map<Way, string>()
      for (const way of round % 2 === 0 ? ways : [...ways].reverse()) {
        const { output, ...ran } = await run(way, round)
        outputs.set(way, output)
        if (round > 0) found[way].push(ran)
      }
      if (round === 0) {
        const digests = await Promise.all([...outputs.values()].map(digestOf))
        if (new Set(digests).size !== 1) throw new Error(`the outputs differ: the comparison is void (${digests.map((digest) => digest.slice(0, 40)).join(' | ')})`)
        say('all ways gave the same records, byte for byte, in the same order')
      } else {
        tools.push(await perf(round))
        const shown = ways.map((way) => `${way} ${Math.round(found[way].at(-1)?.perSecond ?? 0)}/s, ${found[way].at(-1)?.cpuUs.toFixed(1)} µs`)
        say(`round ${round} of ${rounds}: ${shown.join('; ')}; perf tools ${Math.round(tools.at(-1)?.produce ?? 0)} and ${Math.round(tools.at(-1)?.consume ?? 0)}/s`)
      }
      await admin.deleteTopics({ topics: [...outputs.values(), ...(round > 0 ? [`bench.perf.${round}`] : [])] })
    }
    const ratios = (of: Way, to: (round: number) => number): number[] => found[of].map(({ perSecond }, at) => perSecond / to(at)).sort((a, b) => a - b)
    const toBytes = ratios('hop', (at) => found.bytes[at]?.perSecond ?? 1)
    const toTools = ratios('hop', (at) => Math.min(tools[at]?.produce ?? 1, tools[at]?.consume ?? 1))
    const toHop = ratios('transactions', (at) => found.hop[at]?.perSecond ?? 1)
    const show = (values: readonly number[]): string => `${median(values).toFixed(2)} x (${values[0]?.toFixed(2)} to ${values.at(-1)?.toFixed(2)})`
    say(`hop at least once: ${show(toBytes)} bytes passed through, ${show(toTools)} the slower of Kafka's perf tools`)
    say(`hop with transactions: ${show(toHop)} the same at least once`)

    // latency: the moment of sending to the moment a reader of committed records has it, beside whoever sends and reads
    await create('bench.hop.live.in', 'bench.hop.live.out')
    const { end } = await open('transactions', 'bench-hop-live', 'bench.hop.live.in', 'bench.hop.live.out')
    const limit = new AbortController()
    let latencies: number[] = []
    const sink = tail(brokers, 'frameloop.bench.live', 'bench.hop.live.out', 'end', limit.signal)
    await sink.next()
    const reading = (async () => {
      for await (const record of sink) if (record) latencies.push(Date.now() - Number.parseInt(traceIdOf(record.headers['traceparent']), 16))
    })()
    // the bodies are made before: making them must not take the time of those they are measured beside
    const bodies = await Promise.all(Array.from({ length: 500 }, (_, n) => recordAt(n)))
    /** Sends for a while, `rate` a second or as many as are acknowledged, and waits until all have come out. */
    const drive = async (rate: number | undefined): Promise<{ readonly perSecond: number; readonly latencies: readonly number[] }> => {
      latencies = []
      const every = 20
      const per = rate === undefined ? 500 : Math.round((rate * every) / 1000)
      const beganAt = performance.now()
      let sent = 0
      for (let tick = 1; performance.now() - beganAt < latencySeconds * 1000; tick += 1) {
        // the trace id goes the whole way: here it is the moment of sending
        const traceparent = `00-${Date.now().toString(16).padStart(32, '0')}-${'1'.repeat(16)}-01`
        const messages = Array.from({ length: per }, (_, n) => {
          const { key, value, headers } = bodies[(sent + n) % bodies.length] as (typeof bodies)[number]
          return { key, value, headers: { ...headers, traceparent } }
        })
        sent += per
        const sending = producer.send({ topic: 'bench.hop.live.in', acks: 1, messages })
        if (rate === undefined) await sending
        const ahead = tick * every - (performance.now() - beganAt)
        if (rate !== undefined && ahead > 0) await sleep(ahead)
      }
      if (!(await until(() => latencies.length >= sent || undefined, 120_000, 10))) throw new Error(`${latencies.length} of ${sent} records came out`)
      return { perSecond: sent / ((performance.now() - beganAt) / 1000), latencies }
    }
    let load: { readonly most: number; readonly rate: number; readonly p50: number; readonly p99: number; readonly worst: number }
    try {
      await drive(undefined)
      const most = (await drive(undefined)).perSecond
      const rate = most / 2
      const sorted = (await drive(rate)).latencies.slice().sort((a, b) => a - b)
      const at = (share: number): number => sorted[Math.floor(sorted.length * share)] ?? 0
      load = { most, rate, p50: at(0.5), p99: at(0.99), worst: sorted.at(-1) ?? 0 }
      say(
        `with transactions ${Math.round(most)}/s beside those who send and read; at half of it for ${latencySeconds} s: p50 ${load.p50} ms, p99 ${load.p99} ms, most ${load.worst} ms`,
      )
    } finally {
      limit.abort()
      await reading.catch(() => {})
      await end()
    }
    return {
      records,
      valueBytes: one.value.length,
      found,
      perfTools: tools,
      toBytes,
      toTools,
      toHop,
      latencyAtHalfLoad: load,
    }
  } finally {
    await Promise.all([producer.disconnect(), admin.disconnect()])
    await stack.end('SIGTERM')
  }
}
