/** An event as it travels, encoded and decoded: our Avro against JSON, CPU time and bytes. */
import { deepStrictEqual } from 'node:assert'
import { typeOf } from '@frameloop/schemas/codec'
import type { MediaValidated } from '@frameloop/schemas/events'
import { aValidated } from './events.ts'
import { median } from './measure.ts'

const rounds = 15
const events = 20_000

function cpuMsOf(act: () => void): number {
  const since = process.cpuUsage()
  act()
  const { user, system } = process.cpuUsage(since)
  return (user + system) / 1000
}

export async function benchAvro(say: (text: string) => void): Promise<object> {
  const type = typeOf('MediaValidated')
  const list = Array.from({ length: events }, (_, seq) => aValidated(seq))
  const avro = list.map((one) => type.toBuffer(one))
  const json = list.map((one) => Buffer.from(JSON.stringify(one)))
  list.forEach((one, at) => {
    deepStrictEqual({ ...type.fromBuffer(avro[at] as Buffer), object: { ...(type.fromBuffer(avro[at] as Buffer) as MediaValidated).object } }, one)
    deepStrictEqual(JSON.parse((json[at] as Buffer).toString()), one)
  })
  const ways = {
    avroEncode: () => list.forEach((one) => void type.toBuffer(one)),
    jsonEncode: () => list.forEach((one) => void Buffer.from(JSON.stringify(one))),
    avroDecode: () => avro.forEach((bytes) => void type.fromBuffer(bytes)),
    jsonDecode: () => json.forEach((bytes) => void JSON.parse(bytes.toString())),
  }
  const names = Object.keys(ways) as (keyof typeof ways)[]
  const times = Object.fromEntries(names.map((name) => [name, [] as number[]])) as Record<keyof typeof ways, number[]>
  for (let round = -2; round < rounds; round += 1) {
    for (const name of round % 2 === 0 ? names : [...names].reverse()) {
      const took = cpuMsOf(ways[name])
      if (round >= 0) times[name].push(took)
    }
  }
  const ratio = (ours: keyof typeof ways, theirs: keyof typeof ways): number[] => times[theirs].map((took, at) => took / (times[ours][at] ?? 1)).sort((a, b) => a - b)
  const encode = ratio('avroEncode', 'jsonEncode')
  const decode = ratio('avroDecode', 'jsonDecode')
  const bytes = (avro[0]?.length ?? 0) / (json[0]?.length ?? 1)
  const show = (ratios: readonly number[]): string => `${median(ratios).toFixed(2)} x (${ratios[1]?.toFixed(2)} to ${ratios.at(-2)?.toFixed(2)})`
  say(`encode ${show(encode)} JSON, decode ${show(decode)} JSON, ${avro[0]?.length} of ${json[0]?.length} bytes (${bytes.toFixed(2)} x)`)
  for (const name of names) say(`${name}: ${(events / median(times[name])).toFixed(0)} thousand a CPU second`)
  return { encode, decode, bytes, cpuMs: times }
}
