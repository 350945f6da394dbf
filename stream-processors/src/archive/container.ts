/**
 * Records of one partition ⇄ an Avro object container file (Avro 1.11, "Object Container Files"), readable by any Avro tool.
 * Nothing in it comes from chance or from the time of writing, and nothing is compressed, so that writing the same
 * records again gives the same bytes on every machine.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { Fault, toError } from '@frameloop/kit/fault'
import avro from 'avsc'
import type { BusRecord } from '../chain/stage.ts'

const envelope = avro.Type.forSchema(
  {
    type: 'record',
    name: 'ArchivedRecord',
    namespace: 'dev.frameloop',
    fields: [
      { name: 'offset', type: 'long' },
      { name: 'timestamp', type: 'long' },
      { name: 'key', type: 'bytes' },
      { name: 'headers', type: { type: 'map', values: 'string' } },
      { name: 'value', type: 'bytes' },
    ],
  },
  { registry: {} },
)

interface Envelope {
  readonly offset: number
  readonly timestamp: number
  readonly key: Buffer
  readonly headers: Record<string, string>
  readonly value: Buffer
}

export interface ArchivePlace {
  readonly topic: string
  readonly partition: number
  /** First offset that it stands for, whether a record lies there or not. */
  readonly from: number
}

/** The same for the same place, whoever writes. */
function syncMarker({ topic, partition, from }: ArchivePlace): Buffer {
  return createHash('sha256').update(`frameloop archive\0${topic}\0${partition}\0${from}`).digest().subarray(0, 16)
}

/** `until` is one past the last offset that it stands for. */
export async function encodeContainer(place: ArchivePlace, until: number, records: readonly BusRecord[]): Promise<Buffer> {
  const text = (value: string | number): Buffer => Buffer.from(String(value))
  const metadata = {
    'frameloop.records': text(records.length),
    'frameloop.from': text(place.from),
    'frameloop.partition': text(place.partition),
    'frameloop.topic': text(place.topic),
    'frameloop.until': text(until),
  }
  const encoder = new avro.streams.BlockEncoder(envelope, { codec: 'null', syncMarker: syncMarker(place), metadata, blockSize: 65_536 } as never)
  const chunks: Buffer[] = []
  encoder.on('data', (chunk: Buffer) => chunks.push(chunk))
  const ended = once(encoder, 'end')
  for (const { offset, timestamp, key, keyBytes, headers, value } of records) {
    const item: Envelope = { offset, timestamp, key: keyBytes ?? Buffer.from(key), headers: { ...headers }, value }
    if (!encoder.write(item)) await once(encoder, 'drain')
  }
  encoder.end()
  await ended
  return Buffer.concat(chunks)
}

/** Throws `OBJECT_CONFLICT` for bytes that are no archive of that place. */
export async function decodeContainer(place: ArchivePlace, bytes: Buffer): Promise<BusRecord[]> {
  const decoder = new avro.streams.BlockDecoder({ parseHook: () => envelope })
  const records: BusRecord[] = []
  decoder.on('data', ({ offset, timestamp, key, headers, value }: Envelope) => {
    const text = key.toString()
    const isText = Buffer.from(text).equals(key)
    records.push({ topic: place.topic, partition: place.partition, offset, timestamp, key: text, ...(isText ? {} : { keyBytes: key }), headers: { ...headers }, value })
  })
  let stated = -1
  decoder.on('metadata', (_type: unknown, _codec: unknown, { meta }: { meta: Record<string, Buffer> }) => {
    stated = Number(meta['frameloop.records'])
  })
  try {
    const ended = once(decoder, 'end')
    decoder.end(bytes)
    await ended
    // a file cut off between two blocks reads as if it were whole
    if (records.length !== stated) throw new Error(`it holds ${records.length} records and says ${stated}`)
  } catch (thrown) {
    throw new Fault('OBJECT_CONFLICT', `The archive of ${place.topic}/${place.partition} from ${place.from} on cannot be read: ${toError(thrown).message}`, {}, thrown)
  }
  return records
}
