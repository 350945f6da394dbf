/**
 * Events ⇄ bytes in Confluent wire format: 0x00, the schema id as a big-endian int32, Avro binary.
 * A record is read with the schema it was written with and resolved into ours (Avro 1.11, "Schema Resolution").
 */
import { Fault, toError } from '@frameloop/kit/fault'
import type { EpochMs } from '@frameloop/kit/units'
import type avro from 'avsc'
import { parseSchema } from './avro-types.ts'
import type { Events } from './events.ts'
import { schemaTexts } from './events.ts'
import { headersOf } from './record-headers.ts'
import type { SchemaRegistry } from './registry.ts'
import { type EventName, subjectOf, type Topic } from './topics.ts'

const types = new Map<EventName, avro.Type>()

export function typeOf(event: EventName): avro.Type {
  let type = types.get(event)
  if (type === undefined) {
    type = parseSchema(schemaTexts[event])
    types.set(event, type)
  }
  return type
}

/** Avro alone, without the header. */
export function encodeAvro<Name extends EventName>(event: Name, value: Events[Name]): Buffer {
  return typeOf(event).toBuffer(value)
}

/** Both answer at once when they know the schema, with a promise when the registry must be asked first. */
export interface Codec {
  encode<Name extends EventName>(topicName: string, event: Name, value: Events[Name]): Buffer | Promise<Buffer>
  /** Throws `RECORD_MALFORMED` or `SCHEMA_UNKNOWN`; `REGISTRY_UNAVAILABLE` may pass. */
  decode<Name extends EventName>(event: Name, bytes: Uint8Array): Events[Name] | Promise<Events[Name]>
}

/** Whoever publishes an event: what it is about, when that was, who says so. */
export interface RecordAbout {
  readonly key: string
  readonly id: string
  /** Event time. */
  readonly time: EpochMs
  readonly source: string
  readonly traceparent: string
}

export interface EncodedRecord {
  readonly key: string
  readonly value: Buffer
  readonly headers: Record<string, string>
}

/** An event as a record of its topic: key, value and headers. At once when the schema is known. */
export function recordOf<Name extends EventName>(codec: Codec, topic: Topic<Name>, event: Events[Name], about: RecordAbout): EncodedRecord | Promise<EncodedRecord> {
  const headers = headersOf(about, topic.event)
  const value = codec.encode(topic.name, topic.event, event)
  return value instanceof Promise ? value.then((encoded) => ({ key: about.key, value: encoded, headers })) : { key: about.key, value, headers }
}

const headerBytes = 5
/** Where values are written before they are copied out at their size. */
let slab = Buffer.alloc(65_536)

interface Reader {
  /** Of another version of the schema: resolves what it wrote into ours. */
  readonly resolver: avro.Resolver | undefined
}

function write(event: EventName, id: number, value: object): Buffer {
  let end = typeOf(event).encode(value, slab, headerBytes)
  if (end < 0) {
    // it says by how much it was too small
    slab = Buffer.alloc(slab.length - end)
    end = typeOf(event).encode(value, slab, headerBytes)
  }
  slab[0] = 0
  slab.writeInt32BE(id, 1)
  const bytes = Buffer.allocUnsafe(end)
  slab.copy(bytes, 0, 0, end)
  return bytes
}

function read<Name extends EventName>(event: Name, id: number, { resolver }: Reader, buffer: Buffer): Events[Name] {
  try {
    const { value, offset } = typeOf(event).decode(buffer, headerBytes, resolver)
    if (offset !== buffer.length) throw new Error(offset < 0 ? 'it ends too early' : `${buffer.length - offset} bytes too many`)
    // the resolver yields the reader's type, whose shape the generated interface states
    return value as Events[Name]
  } catch (thrown) {
    throw new Fault('RECORD_MALFORMED', `The value does not follow its schema ${id}: ${toError(thrown).message}`, { id }, thrown)
  }
}

export function openCodec(registry: SchemaRegistry): Codec {
  const ids = new Map<string, number>()
  const readers = new Map<string, Reader>()
  /** Questions to the registry that are under way. */
  const asked = new Map<string, Promise<unknown>>()
  const once = <Answer>(question: string, ask: () => Promise<Answer>): Promise<Answer> => {
    const known = asked.get(question) as Promise<Answer> | undefined
    if (known !== undefined) return known
    const answer = ask().finally(() => asked.delete(question))
    asked.set(question, answer)
    return answer
  }
  const idOf = (topicName: string, event: EventName): Promise<number> =>
    once(`id ${topicName}`, async () => {
      const id = await registry.register(subjectOf(topicName), schemaTexts[event])
      ids.set(topicName, id)
      return id
    })
  const readerOf = (event: EventName, id: number): Promise<Reader> =>
    once(`reader ${event} ${id}`, async () => {
      const text = await registry.schemaOf(id)
      const ours = typeOf(event)
      try {
        const writer = parseSchema(text)
        const reader = { resolver: writer.equals(ours) ? undefined : ours.createResolver(writer) }
        readers.set(`${event} ${id}`, reader)
        return reader
      } catch (thrown) {
        throw new Fault('RECORD_MALFORMED', `Schema ${id} is no ${event}: ${toError(thrown).message}`, { event, id }, thrown)
      }
    })
  return {
    encode(topicName, event, value) {
      const id = ids.get(topicName)
      return id === undefined ? idOf(topicName, event).then((found) => write(event, found, value)) : write(event, id, value)
    },
    decode(event, bytes) {
      const buffer = Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      if (buffer.length < headerBytes || buffer[0] !== 0)
        throw new Fault('RECORD_MALFORMED', 'The value does not begin with the magic byte 0x00 and a schema id', { length: buffer.length })
      const id = buffer.readInt32BE(1)
      const reader = readers.get(`${event} ${id}`)
      return reader ? read(event, id, reader, buffer) : readerOf(event, id).then((found) => read(event, id, found, buffer))
    },
  }
}
