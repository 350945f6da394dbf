import { expect, test } from 'vitest'
import { Fault } from './fault.ts'
import { problemOf } from './http.ts'
import { isForeign, isStranger } from './strangers.ts'

test('a page of another address is foreign, unless it is allowed or brings a key', () => {
  const page = { host: '127.0.0.1:4600', origin: 'https://shop.example.org' }
  expect(isForeign(page, [])).toBe(true)
  expect(isForeign({ ...page, origin: 'null' }, [])).toBe(true)
  expect(isForeign(page, ['https://shop.example.org'])).toBe(false)
  expect(isForeign({ ...page, authorization: 'Bearer x' }, [])).toBe(false)
  expect(isForeign({ ...page, origin: 'http://127.0.0.1:4600' }, [])).toBe(false)
  expect(isForeign({ host: page.host }, [])).toBe(false)
})

test.each([
  ['127.0.0.1:4600', false],
  ['localhost:4600', false],
  ['page.localhost', false],
  ['[::1]:4600', false],
  ['192.168.0.7', false],
  ['evil.example:4600', true],
  ['127.0.0.1.evil.example', true],
  ['localhost.evil.example', true],
  ['shop.example.org', false],
  ['a b', true],
])('a name that leads to this machine: %s is a stranger’s: %s', (host, is) => {
  expect(isStranger({ host }, ['https://shop.example.org'])).toBe(is)
})

test('a name is ours when it was named, however it is written; a header that any page can send changes nothing', () => {
  expect(isStranger({ host: 'cameras.local:4600' }, [])).toBe(true)
  expect(isStranger({ host: 'cameras.local:4600' }, [], ['Cameras.Local'])).toBe(false)
  expect(isStranger({ host: 'cameras.local:4600', authorization: 'Bearer x' }, [])).toBe(true)
})

test('what is away is said to be away, and only what nobody expected is a bug of ours', () => {
  const coded = (code: string): Error => Object.assign(new Error('no'), { code })
  const kafka = Object.assign(new Error('no leader'), { name: 'KafkaJSNumberOfRetriesExceeded' })
  expect(problemOf(coded('ECONNREFUSED'))).toMatchObject({ status: 503, document: { code: 'DATABASE_UNAVAILABLE' } })
  expect(problemOf(coded('57P01'))).toMatchObject({ status: 503, document: { code: 'DATABASE_UNAVAILABLE' } })
  // a sender who breaks off, which looks the same
  expect(problemOf(Object.assign(coded('ECONNRESET'), { statusCode: 400 }))).toMatchObject({ status: 400 })
  expect(problemOf(kafka)).toMatchObject({ status: 503, document: { code: 'KAFKA_UNAVAILABLE' } })
  expect(problemOf(new Fault('PICTURE_ANIMATED', 'two pictures'))).toMatchObject({ status: 422 })
  expect(problemOf(new Error('a bug'))).toMatchObject({ status: 500, document: { code: 'INTERNAL' } })
})
