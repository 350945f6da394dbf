import type { Sql } from '@frameloop/kit/postgres'
import { preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import type { TaskZone } from '@frameloop/stream-processors/features/zones'
import { pixelWork } from '@frameloop/stream-processors/pixels/pixel-work'
import sharp from 'sharp'
import { expect, test } from 'vitest'
import { mayReplace } from '../models/promote.ts'
import type { Evaluation } from './evaluate.ts'
import { compareLive, sayDifferent } from './live-sample.ts'

const preprocessing = { width: 32, height: 32 }
const shape = { zone: 'left', x: 10, y: 20, width: 100, height: 80, pictureWidth: 320, pictureHeight: 240 }
const zone: TaskZone = { shape, task: 'occupancy', preprocessing }
const noise = Buffer.from(new Uint8Array(320 * 240 * 3).map((_, at) => (at * 31 + (at >> 7) * 17) % 256))

/** A frame that was answered, with `served` in place of what the chain prepared. */
async function answered(served: (prepared: Uint8Array) => Uint8Array, drawnAt = shape) {
  const picture = await sharp(noise, { raw: { width: 320, height: 240, channels: 3 } })
    .jpeg()
    .toBuffer()
  const { groups } = await pixelWork.prepare(picture, [zone], new Map())
  const [group] = groups
  const [prepared] = group?.zones ?? []
  const { x = 0, y = 0, width = 0, height = 0 } = prepared?.rectangle ?? {}
  const row = {
    ...{ frame_id: 'f', camera_id: 'street', preprocessing: preprocessingDigest(preprocessing), bucket: 'processed', object_key: 'p', reference: null },
    ...{ zones: [{ zone: 'left', tasks: ['occupancy'], x, y, width, height, offset: 0, shape: [32, 32, 3] }], picture_bucket: 'raw', picture_key: 'r' },
  }
  const drawn = {
    ...{ camera_id: 'street', zone: 'left', task: 'occupancy', wanted: preprocessing, serving: [] },
    ...{ x: drawnAt.x, y: drawnAt.y, width: drawnAt.width, height: drawnAt.height, picture_width: 320, picture_height: 240 },
  }
  const sql = { query: async (text: string) => ({ rows: text.includes('from predictions p') ? [row] : text.includes('from zones z') ? [drawn] : [] }) } as unknown as Sql
  const store = { get: async (bucket: string) => (bucket === 'raw' ? picture : Buffer.from(served(group?.packed ?? new Uint8Array()))) }
  return compareLive(sql, store, pixelWork, 'occupancy')
}

test('what serving saw is what training would see', async () => {
  expect(await answered((prepared) => prepared)).toEqual({ compared: 1, different: [] })
})

test('colours the other way round are found, said, and keep a model from being promoted', async () => {
  const sample = await answered((prepared) => prepared.map((_, at) => prepared[at - (at % 3) + 2 - (at % 3)] as number))
  expect(sample).toMatchObject({ compared: 1, different: [{ frameId: 'f', cameraId: 'street', zone: 'left' }] })
  const said = sayDifferent(sample)
  expect(said).toMatch(/^1 of 1 live inputs are not what the path of training makes of the same pictures \(zone left of frame f by \d/)
  const good = { n: 10, balancedAccuracy: 1 } as Evaluation
  expect(mayReplace(good, undefined, false, said)).toEqual({ promote: false, reason: said })
  expect(mayReplace(good, undefined, false, '').promote).toBe(true)
})

test('a zone that was drawn elsewhere meanwhile says nothing', async () => {
  expect(await answered((prepared) => prepared, { ...shape, x: 60 })).toEqual({ compared: 0, different: [] })
})
