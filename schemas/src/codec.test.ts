import { readFileSync } from 'node:fs'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { parseSchema } from './avro-types.ts'
import { openCodec, typeOf } from './codec.ts'
import { schemaTexts } from './events.ts'
import { generate } from './generate.ts'
import type { SchemaRegistry } from './registry.ts'
import { allTopics } from './topics.ts'

/** A registry in memory, for the codec alone; the real one is spoken to end to end. */
function aRegistry(): SchemaRegistry {
  const texts: string[] = []
  return {
    register: async (_, schema) => (texts.includes(schema) ? texts.indexOf(schema) + 1 : texts.push(schema)),
    schemaOf: async (id) => texts[id - 1] ?? '',
  }
}

const loss = { siteId: 's', cameraId: 'c', epoch: 'e', seqFrom: 1, seqTo: 2, agentId: 'a', reason: 'evicted', lostAt: 5 }

test('every schema is valid Avro and stands on its own', () => {
  for (const { event } of allTopics) expect((typeOf(event) as { name?: string }).name).toBe(`dev.frameloop.${event}`)
  expect(new Set(allTopics.map(({ event }) => event))).toEqual(new Set(Object.keys(schemaTexts)))
})

test('the generated types are those of the schemas', () => {
  expect(readFileSync(new URL('./events.ts', import.meta.url), 'utf8')).toBe(generate(new URL('../avro/', import.meta.url)))
})

test('a field that is no identity has a default, so that replay can read every older record', () => {
  for (const { event } of allTopics) {
    const { fields } = JSON.parse(schemaTexts[event]) as { fields: { name: string; default?: unknown }[] }
    const without = fields.filter((field) => field.default === undefined).map(({ name }) => name)
    for (const name of without) expect(name, event).toMatch(/Id$|^(epoch|seq|seqFrom|seqTo|object|zone|task|alias|label|version|digest|modelName|modelVersion|preprocessing)$/)
  }
})

test('an array that says to be longer than its record is malformed, and takes no memory', () => {
  const type = parseSchema(JSON.stringify({ type: 'record', name: 'R', fields: [{ name: 'list', type: { type: 'array', items: 'string' } }] }))
  expect(type.fromBuffer(type.toBuffer({ list: ['a', 'b'] }))).toEqual({ list: ['a', 'b'] })
  // a count of 2 ** 31 as a zigzag varint, and two items
  const claimed = Buffer.from([0x80, 0x80, 0x80, 0x80, 0x10, 0x02, 0x61, 0x02, 0x62])
  expect(() => type.fromBuffer(claimed)).toThrow('longer than its record')
  // blocks with their size, as other writers make them
  expect(type.fromBuffer(Buffer.from([0x03, 0x08, 0x02, 0x61, 0x02, 0x62, 0x00]))).toEqual({ list: ['a', 'b'] })
})

test('what was encoded is decoded, in Confluent wire format', async () => {
  const codec = openCodec(aRegistry())
  const bytes = await codec.encode('media.lost', 'MediaLost', loss)
  expect([...bytes.subarray(0, 5)]).toEqual([0, 0, 0, 0, 1])
  expect(await codec.decode('MediaLost', bytes)).toEqual(loss)
})

test('a record of an older writer is read with the defaults of newer fields', async () => {
  const registry = aRegistry()
  const codec = openCodec(registry)
  const schema = JSON.parse(schemaTexts.MediaLost) as { fields: { name: string }[] }
  const older = JSON.stringify({ ...schema, fields: schema.fields.filter(({ name }) => name !== 'reason') })
  const id = await registry.register('media.lost-value', older)
  const avro = (await import('avsc')).default
  const body = avro.Type.forSchema(JSON.parse(older)).toBuffer(loss)
  const header = Buffer.from([0, 0, 0, 0, id])
  expect(await codec.decode('MediaLost', Buffer.concat([header, body]))).toEqual({ ...loss, reason: '' })
})

const sha256 = 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
const captured = {
  ...{ siteId: 's', cameraId: 'c', mediaId: 'm', epoch: 'e', seq: 1, lane: 'live', source: 'camera', kind: 'image', agentId: 'a', capturedAt: 5, mediaOffsetUs: null },
  ...{ object: { bucket: 'b', key: 'k', sha256, bytes: 7, versionId: '', contentType: 'image/jpeg' }, width: 0, height: 0, motion: null, sourceName: '' },
}

test.each(['', 'no digest', sha256])('a digest goes as bytes and comes back as it was: "%s"', async (digest) => {
  const codec = openCodec(aRegistry())
  const event = { ...captured, object: { ...captured.object, sha256: digest } }
  const bytes = await codec.encode('media.captured', 'MediaCaptured', event)
  expect(await codec.decode('MediaCaptured', bytes)).toEqual(event)
  expect(bytes.includes(Buffer.from(sha256, 'hex'))).toBe(digest === sha256)
})

test('texts come back as they were, short and long, whatever was read before', async () => {
  const codec = openCodec(aRegistry())
  const text = fc.oneof(fc.string({ unit: 'binary', maxLength: 50 }), fc.string({ maxLength: 3 }), fc.constantFrom('live', 'é', 'Ã©', '\u00e9\u0000', ''))
  await fc.assert(
    fc.asyncProperty(text, text, async (cameraId, reason) => {
      const event = { ...loss, cameraId, reason }
      expect(await codec.decode('MediaLost', await codec.encode('media.lost', 'MediaLost', event))).toEqual(event)
    }),
    { numRuns: 2_000 },
  )
})

test('records whose digests are text, and those whose other fields are older, are read all the same', async () => {
  const registry = aRegistry()
  const codec = openCodec(registry)
  const before = readFileSync(new URL('../avro/released/0.1.0/media-captured.avsc', import.meta.url), 'utf8')
  const ours = JSON.parse(schemaTexts.MediaCaptured) as { fields: { name: string }[] }
  const older = JSON.stringify({ ...ours, fields: ours.fields.filter(({ name }) => name !== 'sourceName') })
  for (const text of [before, older]) {
    const header = Buffer.from([0, 0, 0, 0, await registry.register('media.captured-value', text)])
    expect(await codec.decode('MediaCaptured', Buffer.concat([header, parseSchema(text).toBuffer(captured)]))).toEqual(captured)
  }
})

test.each([
  ['empty', Buffer.alloc(0)],
  ['text', Buffer.from('hello, I am no Avro')],
  ['cut off', Buffer.from([0, 0, 0, 0, 1, 4])],
])('a value that is %s is refused as malformed', async (_, bytes) => {
  const codec = openCodec(aRegistry())
  await codec.encode('media.lost', 'MediaLost', loss)
  await expect((async () => codec.decode('MediaLost', bytes))()).rejects.toMatchObject({ code: 'RECORD_MALFORMED' })
})
