import { expect, test } from 'vitest'
import { parseLabels, parseZones } from './label-file.ts'

test('labels are read by any of the three keys', () => {
  expect(parseLabels('media_offset_ms,zone,label\n100,left,empty\n')).toEqual([{ line: 2, zone: 'left', label: 'empty', mediaOffsetMs: 100 }])
  expect(parseLabels('zone,label,frame_id\r\nleft,empty,abc\r\n')).toEqual([{ line: 2, zone: 'left', label: 'empty', frameId: 'abc' }])
})

test('every wrong line is named at once', () => {
  expect(() => parseLabels('media_offset_ms,zone,label\nx,left,empty\n5,,empty\n-1,left,empty')).toThrow(/3 lines are wrong:\n {2}line 2.*\n {2}line 3.*\n {2}line 4/)
  expect(() => parseLabels('time,zone\n1,a')).toThrow(/must name the columns/)
  expect(() => parseLabels('media_offset_ms,zone,label\n')).toThrow(/no label/)
})

test('a wrong zone file says what is wrong with each zone', () => {
  expect(() => parseZones('not json')).toThrow(/no JSON/)
  expect(() => parseZones('[]')).toThrow(/no list of zones/)
  const zone = { zone: 'a', x: 0, y: 0, width: 10, height: 10, pictureWidth: 20, pictureHeight: 20 }
  expect(parseZones(JSON.stringify([zone]))).toEqual([zone])
  expect(() =>
    parseZones(
      JSON.stringify([
        { ...zone, width: 30 },
        { ...zone, zone: 'b c', height: 'tall' },
      ]),
    ),
  ).toThrow(/zone a reaches out[\s\S]*zone 2: "zone" must be a name[\s\S]*"height" must be a whole number/)
})

test('what is no zone at all, and a name that stands there twice, are said', () => {
  const zone = { zone: 'a', x: 0, y: 0, width: 10, height: 10, pictureWidth: 20, pictureHeight: 20 }
  expect(() => parseZones('[null]')).toThrow(/zone 1: "zone" must be a name/)
  expect(() => parseZones(JSON.stringify([zone, zone]))).toThrow(/zone a stands there twice/)
})
