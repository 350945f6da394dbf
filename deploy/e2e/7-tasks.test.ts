/** Several tasks at once, each with its own preprocessing, on the simulated street. */
import { objectStoreOf } from '@frameloop/kit/object-store'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import { prepareZone, preprocessingDigest } from '@frameloop/stream-processors/features/prepare'
import { decodePicture } from '@frameloop/stream-processors/picture/decode-picture'
import { afterAll, expect, test } from 'vitest'
import { simulatedZones } from '../src/demo.ts'
import { env, frameloop, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

const store = objectStoreOf(state.environment)
afterAll(async () => {
  store.close()
  await pool.query("delete from zones where task = 'crossing'")
  await pool.end()
})

const [zone] = simulatedZones
const equalised = { width: 96, height: 96, colour: 'gray', filters: ['equalise'] } as const
const compared = { width: 32, height: 32, colour: 'gray', filters: ['difference'] } as const

interface Prepared {
  readonly frame_id: string
  readonly bucket: string
  readonly object_key: string
  readonly zones: { zone: string; tasks: string[]; shape: number[]; offset: number }[]
  readonly picture_bucket: string
  readonly picture_key: string
}
const preparedBy = (digest: string): Promise<Prepared> =>
  soon(async () =>
    one<Prepared>(
      "select p.frame_id, p.bucket, p.object_key, p.zones, f.bucket as picture_bucket, f.object_key as picture_key from features p join frames f using (frame_id) where p.camera_id = 'street' and p.preprocessing = $1 and f.object_key <> '' order by p.frame_at desc limit 1",
      [digest],
    ),
  )

test('a second task with another preprocessing is prepared beside the first, and disturbs nothing of it', async () => {
  if (!zone) throw new Error('the street has no zone')
  const said = await frameloop('tasks', 'set', 'crossing', '--size', '96x96', '--colour', 'gray', '--filters', 'equalise', '--classes', 'empty,occupied')
  expect(said).toContain('crossing: 96x96 gray, area, equalise, new')
  await fetch(`${env('LABELS_URL') || state.endpoints['labels']}/v1/cameras/street/tasks/crossing/zones`, {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ zones: [zone] }),
  }).then(async (response) => expect(response.status, await response.text()).toBeLessThan(300))
  const found = await preparedBy(preprocessingDigest(equalised))
  expect(found.zones).toMatchObject([{ zone: zone.zone, tasks: ['crossing'], shape: [96, 96, 1] }])
  // the pixels are those of the one function that training and serving call too
  const picture = await decodePicture(await store.get(found.picture_bucket, found.picture_key))
  const stored = await store.get(found.bucket, found.object_key)
  expect(stored.equals(Buffer.from(prepareZone(picture, zone, equalised).pixels))).toBe(true)
  // the same frame, prepared for the first task as ever
  const first = await soon(async () =>
    one<{ zones: { tasks: string[] }[] }>('select zones from features where frame_id = $1 and preprocessing = $2', [
      found.frame_id,
      preprocessingDigest({ width: 64, height: 64 }),
    ]),
  )
  expect(first.zones.flatMap(({ tasks }) => tasks)).not.toContain('crossing')
  expect(await frameloop('tasks', 'list')).toMatch(/crossing +96x96 gray, area, equalise \([0-9a-f]{16}\) +1 zones of street +classes empty, occupied/)
})

test('a task that compares with a reference picture waits for one, and says how to make it', async () => {
  const said = await frameloop('tasks', 'set', 'crossing', '--size', '32x32', '--filters', 'difference')
  expect(said).toContain('Frames are prepared this way from now on')
  expect(said).toContain('npx frameloop references build street')
  const built = await frameloop('references', 'build', 'street', '--frames', '9')
  expect(built).toMatch(/street: reference 1, \d+x\d+, the median of 9 frames/)
  const found = await preparedBy(preprocessingDigest(compared))
  expect(found.zones).toMatchObject([{ zone: zone?.zone, shape: [32, 32, 1] }])
  const row = await one<{ reference: string; sha256: string }>(
    "select p.parameters->>'reference' as reference, r.sha256 from features p, reference_pictures r where p.frame_id = $1 and p.preprocessing = $2 and r.camera_id = 'street'",
    [found.frame_id, preprocessingDigest(compared)],
  )
  expect(row?.reference).toBe(row?.sha256)
})

test('the past prepared in another way holds the zones of every task, also of one that compares with a reference picture', async () => {
  const from = await soon(async () => one<{ at: Date }>("select max(frame_at) - interval '2 seconds' as at from frames where camera_id = 'street' and status_rank = 3"))
  const made = JSON.parse(await frameloop('replay', '--from', from.at.toISOString(), '--cameras', 'street', '--preprocessing', '24x24,gray', '--json')) as {
    id: string
    into: string
  }
  const records = readTopic(env('KAFKA_BROKERS'), 'frameloop.test', made.into, AbortSignal.timeout(180_000))
  const { value: first } = await records.next()
  await records.return(undefined)
  const { zones } = await openCodec(openRegistry(env('SCHEMA_REGISTRY_URL'))).decode('FeaturesPrepared', first.value)
  expect(zones.map((prepared) => prepared.zone).sort()).toEqual(simulatedZones.map((drawn) => drawn.zone).sort())
  expect(zones.find((prepared) => prepared.zone === zone?.zone)?.tasks.toSorted()).toEqual(['crossing', 'occupancy'])
  await frameloop('replay', 'remove', made.id)
})

test('wrong parameters are told all at once', async () => {
  await expect(frameloop('tasks', 'set', 'crossing', '--size', '4x4', '--kernel', 'magic', '--filters', 'equalise,blur')).rejects.toMatchObject({
    stderr: expect.stringMatching(/--size 4x4[\s\S]*--kernel magic: one of area[\s\S]*--filters blur: one of equalise/),
  })
})
