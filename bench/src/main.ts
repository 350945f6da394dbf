/** `npm run bench -- NAME…`: runs benchmarks one after the other and keeps their figures in `bench/results`. A benchmark is never a test. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { fileURLToPath } from 'node:url'
import { benchAgent } from './agent.ts'
import { benchAvro } from './avro.ts'
import { benchBeside } from './beside.ts'
import { benchCatalog } from './catalog.ts'
import { benchCameras, benchChain } from './chain.ts'
import { benchDecode } from './decode.ts'
import { benchFeatures } from './features.ts'
import { benchHop } from './hop.ts'
import { benchMotion } from './motion.ts'
import { benchOutage } from './outage.ts'
import { benchPredict } from './predict.ts'
import { benchReplay } from './replay.ts'
import { benchServe } from './serve.ts'
import { benchStart } from './start.ts'

type Bench = (say: (text: string) => void) => Promise<object>

const benches: Readonly<Record<string, { readonly about: string; readonly run: Bench }>> = {
  agent: { about: 'the edge agent: durable appends, uploads, four streams, 1 to 64 cameras (about 10 minutes)', run: benchAgent },
  outage: { about: 'live frames of an agent while it sends what two hours of an outage left (about 10 minutes)', run: benchOutage },
  motion: { about: 'one 1080p camera with motion gate: CPU time against motion (about 5 minutes; needs the Debian package motion)', run: benchMotion },
  start: { about: 'seconds to ready: first start, second starts, starts after kill -9 of everything (about 4 minutes)', run: benchStart },
  chain: { about: 'frames per second through validate → extract → features, CPU per frame (about 1 minute)', run: benchChain },
  cameras: { about: 'the same frames from 1 to 64 cameras: CPU per frame and memory (about 5 minutes)', run: benchCameras },
  avro: { about: 'an event encoded and decoded, against JSON (10 seconds)', run: benchAvro },
  hop: { about: "consume → decode → produce, with and without transactions, against bytes passed through and Kafka's perf tools (about 7 minutes)", run: benchHop },
  decode: { about: '1080p to 224x224 against OpenCV, CPU time and pixels (about 1 minute)', run: benchDecode },
  features: { about: 'the features stage from Kafka to Kafka against the same in Python (about 4 minutes)', run: benchFeatures },
  replay: { about: 'a past range again: events against real time, frames against decoding alone (about 4 minutes)', run: benchReplay },
  beside: { about: 'live frames alone, beside a replay and beside a backlog (about 6 minutes)', run: benchBeside },
  predict: { about: 'predictions over HTTP, WebSocket and binary tensors against FastAPI and LitServe (about 8 minutes; needs the Debian package wrk)', run: benchPredict },
  serve: { about: 'learned batches against fixed ones, the live stage against the engine alone, a reader that takes nothing beside 200 (about 8 minutes)', run: benchServe },
  catalog: { about: 'rows written a second against COPY and one by one; questions at ten million rows (about 10 minutes, 12 GB of disk)', run: benchCatalog },
}

const names = process.argv.slice(2)
const unknown = names.filter((name) => !(name in benches))
if (names.length === 0 || unknown.length > 0) {
  if (unknown.length > 0 && !unknown.includes('--help')) process.stderr.write(`There is no benchmark ${unknown.join(', ')}.\n`)
  process.stdout.write(
    `usage: npm run bench -- NAME…\n${Object.entries(benches)
      .map(([name, { about }]) => `  ${name.padEnd(8)} ${about}\n`)
      .join('')}`,
  )
  process.exitCode = unknown.includes('--help') ? 0 : 2
} else {
  const folder = fileURLToPath(new URL('../results', import.meta.url))
  mkdirSync(folder, { recursive: true })
  for (const name of names) {
    const result = await benches[name]?.run((text) => process.stdout.write(`[${name}] ${text}\n`))
    const machine = { cpu: cpus()[0]?.model ?? '', cores: cpus().length, memoryGiB: Math.round(totalmem() / 2 ** 30), node: process.version }
    writeFileSync(`${folder}/${name}.json`, `${JSON.stringify({ at: new Date().toISOString(), machine, ...result }, null, 2)}\n`)
    process.stdout.write(`[${name}] kept in bench/results/${name}.json\n`)
  }
}
