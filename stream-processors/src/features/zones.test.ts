import type { Sql } from '@frameloop/kit/postgres'
import { expect, test } from 'vitest'
import { selectZones } from './zones.ts'

const zone = (cameraId: string, task: string, more: object = {}) => ({
  ...{ camera_id: cameraId, zone: 'left', task, x: 0, y: 0, width: 10, height: 10, picture_width: 20, picture_height: 20 },
  ...{ wanted: { width: 8, height: 8 }, serving: [], ...more },
})
const difference = { wanted: { width: 8, height: 8, filters: ['difference'] } }
const reference = (cameraId: string, sha256: string) => ({ camera_id: cameraId, bucket: 'b', object_key: sha256, sha256, bytes: 1 })

const zonesOf = (zones: readonly object[], references: readonly object[] = []) =>
  selectZones({ query: async (text: string) => ({ rows: text.includes('from zones z') ? zones : references }) } as unknown as Sql)

test('a camera whose only task waits for a reference picture is no camera without anything to prepare', async () => {
  expect((await zonesOf([zone('door', 'parcels', difference)])).get('door')).toBeUndefined()
  expect((await zonesOf([zone('door', 'parcels', difference), zone('door', 'plain')])).get('door')).toMatchObject([{ task: 'plain' }])
  expect((await zonesOf([zone('door', 'parcels', difference)], [reference('door', 'r1')])).get('door')).toMatchObject([{ task: 'parcels', reference: { sha256: 'r1' } }])
})

test('while a new reference picture waits for its model, frames are prepared against both', async () => {
  const serving = { ...difference, serving: [{ preprocessing: difference.wanted, references: { door: 'r1' } }] }
  const found = await zonesOf([zone('door', 'parcels', serving)], [reference('door', 'r1'), reference('door', 'r2')])
  expect(found.get('door')?.map((one) => one.reference?.sha256)).toEqual(['r2', 'r1'])
})

test('a shadow that was trained on another preprocessing is given its frames too, once however many serve that way', async () => {
  const [small, large] = [
    { preprocessing: { width: 8, height: 8 }, references: {} },
    { preprocessing: { width: 16, height: 16 }, references: {} },
  ]
  const found = await zonesOf([zone('door', 'parcels', { serving: [large, small, large] })])
  expect(found.get('door')?.map(({ preprocessing }) => preprocessing.width)).toEqual([8, 16])
})
