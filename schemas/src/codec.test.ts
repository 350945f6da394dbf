import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
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

test.each([
  ['empty', Buffer.alloc(0)],
  ['text', Buffer.from('hello, I am no Avro')],
  ['cut off', Buffer.from([0, 0, 0, 0, 1, 4])],
])('a value that is %s is refused as malformed', async (_, bytes) => {
  const codec = openCodec(aRegistry())
  await codec.encode('media.lost', 'MediaLost', loss)
  await expect((async () => codec.decode('MediaLost', bytes))()).rejects.toMatchObject({ code: 'RECORD_MALFORMED' })
})
