/**
 * Events ⇄ bytes in Confluent wire format: 0x00, the schema id as a big-endian int32, Avro binary.
 * A record is read with the schema it was written with and resolved into ours (Avro 1.11, "Schema Resolution").
 */
import { Fault, toError } from '@frameloop/kit/fault'
import type { EpochMs } from '@frameloop/kit/units'
import avro from 'avsc'
import type { Events } from './events.ts'
import { schemaTexts } from './events.ts'
import { headersOf } from './record-headers.ts'
import type { SchemaRegistry } from './registry.ts'
import { type EventName, subjectOf, type Topic } from './topics.ts'

const types = new Map<EventName, avro.Type>()

function parse(text: string): avro.Type {
  // a fresh registry per schema: the nested records have the same names in several of them
  return avro.Type.forSchema(JSON.parse(text) as avro.Schema, { registry: {}, wrapUnions: false })
}

export function typeOf(event: EventName): avro.Type {
  let type = types.get(event)
  if (type === undefined) {
    type = parse(schemaTexts[event])
    types.set(event, type)
  }
  return type
}

/** Avro alone, without the header. */
export function encodeAvro<Name extends EventName>(event: Name, value: Events[Name]): Buffer {
  return typeOf(event).toBuffer(value)
}

export interface Codec {
  encode<Name extends EventName>(topicName: string, event: Name, value: Events[Name]): Promise<Buffer>
  /** Throws `RECORD_MALFORMED` or `SCHEMA_UNKNOWN`; `REGISTRY_UNAVAILABLE` may pass. */
  decode<Name extends EventName>(event: Name, bytes: Uint8Array): Promise<Events[Name]>
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

/** An event as a record of its topic: key, value and headers. */
export async function recordOf<Name extends EventName>(
  codec: Codec,
  topic: Topic<Name>,
  event: Events[Name],
  { key, ...head }: RecordAbout,
): Promise<{ readonly key: string; readonly value: Buffer; readonly headers: Record<string, string> }> {
  return { key, value: await codec.encode(topic.name, topic.event, event), headers: headersOf({ ...head, type: topic.event }) }
}

const headerBytes = 5

export function openCodec(registry: SchemaRegistry): Codec {
  const ids = new Map<string, Promise<number>>()
  const resolvers = new Map<string, Promise<{ readonly writer: avro.Type; readonly resolver: avro.Resolver | undefined }>>()
  const remember = <Key, Value>(map: Map<Key, Promise<Value>>, key: Key, make: () => Promise<Value>): Promise<Value> => {
    const known = map.get(key)
    if (known !== undefined) return known
    const made = make()
    map.set(key, made)
    made.catch(() => map.delete(key))
    return made
  }
  const resolverOf = (event: EventName, id: number) =>
    remember(resolvers, `${event} ${id}`, async () => {
      const text = await registry.schemaOf(id)
      const reader = typeOf(event)
      try {
        const writer = parse(text)
        return { writer, resolver: writer.equals(reader) ? undefined : reader.createResolver(writer) }
      } catch (thrown) {
        throw new Fault('RECORD_MALFORMED', `Schema ${id} is no ${event}: ${toError(thrown).message}`, { event, id }, thrown)
      }
    })
  return {
    async encode(topicName, event, value) {
      const id = await remember(ids, topicName, () => registry.register(subjectOf(topicName), schemaTexts[event]))
      const body = typeOf(event).toBuffer(value)
      const out = Buffer.allocUnsafe(headerBytes + body.length)
      out[0] = 0
      out.writeInt32BE(id, 1)
      body.copy(out, headerBytes)
      return out
    },
    async decode<Name extends EventName>(event: Name, bytes: Uint8Array): Promise<Events[Name]> {
      const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      if (buffer.length < headerBytes || buffer[0] !== 0)
        throw new Fault('RECORD_MALFORMED', 'The value does not begin with the magic byte 0x00 and a schema id', { length: buffer.length })
      const id = buffer.readInt32BE(1)
      const { resolver } = await resolverOf(event, id)
      try {
        // the resolver yields the reader's type, whose shape the generated interface states
        return typeOf(event).fromBuffer(buffer.subarray(headerBytes), resolver) as Events[Name]
      } catch (thrown) {
        throw new Fault('RECORD_MALFORMED', `The value does not follow its schema ${id}: ${toError(thrown).message}`, { id }, thrown)
      }
    },
  }
}
