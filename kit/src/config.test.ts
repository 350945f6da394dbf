import Type from 'typebox'
import { expect, test } from 'vitest'
import { readConfig } from './config.ts'

const schema = Type.Object({
  brokers: Type.String({ minLength: 3, description: 'where Kafka is', examples: ['127.0.0.1:9092'] }),
  retries: Type.Integer({ minimum: 1, default: 4 }),
  port: Type.Integer({ maximum: 65535, default: 0 }),
})

test('settings come from variables, with defaults', () => {
  expect(readConfig(schema, { BROKERS: 'b:1', PORT: '80' })).toEqual({ brokers: 'b:1', retries: 4, port: 80 })
})

test('all problems are told at once, with names and an example', () => {
  expect(() => readConfig(schema, { RETRIES: '0', PORT: 'x' })).toThrow(/BROKERS is not set.*for example BROKERS=127\.0\.0\.1:9092[\s\S]*/)
  expect(() => readConfig(schema, { BROKERS: 'abc', RETRIES: '0', PORT: '70000' })).toThrow(/RETRIES[\s\S]*PORT/)
})
