/** A schema may only change so that every record ever written can be read, and every reader in use reads what is written now: FULL_TRANSITIVE. */
import { readdirSync, readFileSync } from 'node:fs'
import type avro from 'avsc'
import { expect, test } from 'vitest'
import { parseSchema } from './avro-types.ts'

const folder = new URL('../avro/', import.meta.url)
const released = new URL('released/', folder)
const current = (file: string): avro.Type => parseSchema(readFileSync(new URL(file, folder), 'utf8'))

const pairs = readdirSync(released)
  .sort()
  .flatMap((version) => readdirSync(new URL(`${version}/`, released)).map((file) => ({ version, file })))

test.each(pairs)('$file reads and is read by its release $version', ({ version, file }) => {
  const old = parseSchema(readFileSync(new URL(`${version}/${file}`, released), 'utf8'))
  const now = current(file)
  expect(() => now.createResolver(old)).not.toThrow()
  expect(() => old.createResolver(now)).not.toThrow()
})

test('a field without a default, and a changed type, would be noticed', () => {
  const schema = JSON.parse(readFileSync(new URL('media-lost.avsc', folder), 'utf8')) as { fields: { name: string; type: unknown }[] }
  const now = current('media-lost.avsc')
  const added = parseSchema(JSON.stringify({ ...schema, fields: [...schema.fields, { name: 'new', type: 'string' }] }))
  expect(() => added.createResolver(now)).toThrow()
  const changed = parseSchema(JSON.stringify({ ...schema, fields: schema.fields.map((field) => (field.name === 'seqFrom' ? { ...field, type: 'string' } : field)) }))
  expect(() => changed.createResolver(now)).toThrow()
})
