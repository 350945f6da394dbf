/** The events of a frame's way, encoded and decoded: our Avro against JSON, CPU time and bytes. */
import { deepStrictEqual } from 'node:assert'
import { typeOf } from '@frameloop/schemas/codec'
import { aWay, type Way } from './events.ts'
import { median } from './measure.ts'

const rounds = 15
const frames = 5_000
const kinds = ['MediaCaptured', 'MediaValidated', 'FrameExtracted', 'FeaturesPrepared'] as const satisfies readonly (keyof Way)[]

function cpuMsOf(act: () => void): number {
  const since = process.cpuUsage()
  act()
  const { user, system } = process.cpuUsage(since)
  return (user + system) / 1000
}

export async function benchAvro(say: (text: string) => void): Promise<object> {
  const ways = Array.from({ length: frames }, (_, seq) => aWay(seq))
  // read back once: objects put together by spreading are slow to walk, for both
  const list = ways.flatMap((way) => kinds.map((kind) => ({ type: typeOf(kind), event: JSON.parse(JSON.stringify(way[kind])) as object })))
  const slab = Buffer.alloc(65_536)
  const avro = list.map(({ type, event }) => ({ type, bytes: type.toBuffer(event) }))
  const json = list.map(({ event }) => Buffer.from(JSON.stringify(event)))
  list.forEach(({ event }, at) => {
    // avsc gives records classes of their own
    deepStrictEqual(JSON.parse(JSON.stringify(avro[at]?.type.fromBuffer(avro[at]?.bytes as Buffer))), event)
    deepStrictEqual(JSON.parse((json[at] as Buffer).toString()), event)
  })
  const acts = {
    // as the codec does
    avroEncode: () => list.forEach(({ type, event }) => void Buffer.from(slab.subarray(0, type.encode(event, slab, 0)))),
    jsonEncode: () => list.forEach(({ event }) => void Buffer.from(JSON.stringify(event))),
    avroDecode: () => avro.forEach(({ type, bytes }) => void type.fromBuffer(bytes)),
    jsonDecode: () => json.forEach((bytes) => void JSON.parse(bytes.toString())),
  }
  const names = Object.keys(acts) as (keyof typeof acts)[]
  const times = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<keyof typeof acts, number[]>
  for (let round = -2; round < rounds; round += 1) {
    for (const name of round % 2 === 0 ? names : [...names].reverse()) {
      const took = cpuMsOf(acts[name])
      if (round >= 0) times[name].push(took)
    }
  }
  const ratio = (ours: keyof typeof acts, theirs: keyof typeof acts): number[] => times[theirs].map((took, at) => took / (times[ours][at] ?? 1)).sort((a, b) => a - b)
  const encode = ratio('avroEncode', 'jsonEncode')
  const decode = ratio('avroDecode', 'jsonDecode')
  const sizes = Object.fromEntries(kinds.map((kind, at) => [kind, { avro: avro[at]?.bytes.length ?? 0, json: json[at]?.length ?? 0 }]))
  const sum = (of: 'avro' | 'json'): number => Object.values(sizes).reduce((total, size) => total + size[of], 0)
  const show = (ratios: readonly number[]): string => `${median(ratios).toFixed(2)} x (${ratios[0]?.toFixed(2)} to ${ratios.at(-1)?.toFixed(2)})`
  say(`encode ${show(encode)} JSON, decode ${show(decode)} JSON, ${sum('avro')} of ${sum('json')} bytes (${(sum('avro') / sum('json')).toFixed(3)} x)`)
  for (const [kind, size] of Object.entries(sizes)) say(`${kind}: ${size.avro} of ${size.json} bytes (${(size.avro / size.json).toFixed(3)} x)`)
  for (const name of names) say(`${name}: ${(list.length / median(times[name])).toFixed(0)} thousand a CPU second`)
  return { encode, decode, sizes, bytes: sum('avro') / sum('json'), cpuMs: times }
}
