import type { MediaCaptured } from '@frameloop/schemas/events'
import { expect, test } from 'vitest'
import { type Before, compare, differingBits, type Look, marksOf, refuse, wrongIdentity } from './rules.ts'

const look: Look = { brightness: 100, sharpness: 400, phash: '0123456789abcdef', fingerprint: 'f1' }
const arrival = { lane: 'live', capturedAt: 1_000_000, arrivedAt: 1_000_200 }
const event = { kind: 'image', object: { bytes: 10, sha256: 'aa', contentType: 'image/jpeg' } } as unknown as MediaCaptured
const content = { bytes: 10, sha256: 'aa', format: 'jpeg' }

test.each([
  ['what was announced', event, content, undefined],
  ['other bytes than announced', event, { ...content, bytes: 9 }, 'SIZE_MISMATCH'],
  ['another digest', event, { ...content, sha256: 'bb' }, 'DIGEST_MISMATCH'],
  ['a clip announced as an image', event, { ...content, format: 'mp4' }, 'TYPE_MISMATCH'],
  ['a PNG announced as a JPEG', event, { ...content, format: 'png' }, 'TYPE_MISMATCH'],
  ['a PNG of no stated type', { ...event, object: { ...event.object, contentType: 'application/octet-stream' } }, { ...content, format: 'png' }, undefined],
  ['nothing known: decoding says what it expected', event, { ...content, format: undefined }, undefined],
])('%s: %#', (_, announced, found, reason) => {
  expect(refuse(announced, found)?.reason).toBe(reason)
})

test.each([
  ['an ordinary picture', {}, {}, []],
  ['a covered lens', { brightness: 3, sharpness: 1 }, {}, ['dark']],
  ['the sun in the lens', { brightness: 250, sharpness: 1 }, {}, ['blown-out']],
  ['a lens out of focus', { sharpness: 4 }, {}, ['blurred']],
  ['a clock a minute ahead', {}, { capturedAt: 1_060_200 }, ['clock-ahead']],
  ['a clock an hour behind', {}, { arrivedAt: 4_600_000 }, ['clock-behind']],
  ['backlog that comes an hour late', {}, { arrivedAt: 4_600_000, lane: 'backlog' }, []],
])('%s is marked as such', (_, seen, came, marks) => {
  expect(marksOf({ ...look, ...seen }, { ...arrival, ...came })).toEqual(marks)
})

test('a camera whose picture does not change by a pixel for ten seconds is frozen, and one pixel ends it', () => {
  let before: Before | undefined
  const at = (second: number, fingerprint: string): readonly string[] => {
    const found = compare({ ...look, phash: fingerprint === 'f1' ? look.phash : '0', fingerprint }, second * 1000, before)
    before = found.now
    return found.marks
  }
  expect(at(0, 'f1')).toEqual([])
  expect(at(3, 'f1')).toEqual(['near-duplicate'])
  for (const second of [5, 9]) expect(at(second, 'f1')).toEqual(['near-duplicate'])
  expect(at(10, 'f1')).toEqual(['near-duplicate', 'frozen'])
  expect(at(12, 'f2')).toEqual([])
  expect(at(13, 'f2')).toEqual(['near-duplicate'])
})

test('pictures that come late, from the backlog, are not compared with later ones', () => {
  const { now } = compare(look, 5_000, undefined)
  expect(compare(look, 4_000, now)).toEqual({ marks: [], now })
})

test('hashes differ in as many bits as they differ in', () => {
  expect(differingBits('0000000000000000', '8000000000000001')).toBe(2)
  expect(differingBits('ffffffffffffffff', '0000000000000000')).toBe(64)
})

test('what is no name and no id is said, before anything is put under it', () => {
  const own = { siteId: 'site-1', cameraId: 'door', agentId: 'agent-1', mediaId: '0192f0c1-0000-7000-8000-000000000001', epoch: 'e' }
  expect(wrongIdentity(own)).toBeUndefined()
  expect(wrongIdentity({ ...own, cameraId: '門' })).toBe('"門" is no name of a camera')
  expect(wrongIdentity({ ...own, siteId: 'a\nb' })).toBe('"a\\nb" is no name of a site')
  expect(wrongIdentity({ ...own, mediaId: '../x' })).toBe('"../x" is no id of a medium')
  expect(wrongIdentity({ ...own, epoch: 'e'.repeat(300) })).toBe('An epoch of 300 characters is none')
})
