/** The contract of the runtime on the bus in memory, and what only a bus in memory can do: thousands of seeds, commits of unknown outcome. */

import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import { openLog } from '@frameloop/kit/log'
import { openMetrics } from '@frameloop/kit/metrics'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { randomOf } from '@frameloop/kit/random'
import { until } from '@frameloop/kit/retry'
import { openCodec } from '@frameloop/schemas/codec'
import type { SchemaRegistry } from '@frameloop/schemas/registry'
import { attemptsTopic, deadLetterTopic, type Topic } from '@frameloop/schemas/topics'
import { beforeEach, expect, test } from 'vitest'
import { type Step, steps } from './bus.ts'
import { type MemoryBus, memoryBus } from './memory-bus.ts'
import { startStage } from './run-stage.ts'
import type { Stage } from './stage.ts'
import { type ContractWorld, openScene, testStageContract } from './stage-contract.ts'

function memoryRegistry(): SchemaRegistry {
  const texts: string[] = []
  return {
    async register(_, text) {
      if (!texts.includes(text)) texts.push(text)
      return texts.indexOf(text) + 1
    },
    async schemaOf(id) {
      const text = texts[id - 1]
      if (text === undefined) throw new Fault('SCHEMA_UNKNOWN', `There is no schema ${id}`)
      return text
    },
  }
}

/** Enough of an object store for a stage: conditional puts. */
function memoryStore(): ObjectStore {
  const objects = new Map<string, string>()
  return {
    async putOnce({ bucket, key, body }: { bucket: string; key: string; body: Uint8Array }) {
      const sha256 = sha256Hex(body)
      const there = objects.get(`${bucket}/${key}`)
      if (there !== undefined && there !== sha256) throw new Fault('OBJECT_CONFLICT', `${key} holds something else`)
      objects.set(`${bucket}/${key}`, sha256)
      return { versionId: '', sha256 }
    },
  } as unknown as ObjectStore
}

let bus: MemoryBus
let world: ContractWorld

beforeEach(() => {
  bus = memoryBus()
  bus.createTopic(attemptsTopic, 3)
  world = {
    bus,
    codec: openCodec(memoryRegistry()),
    store: memoryStore(),
    waitBackoff: { first: 1, cap: 4 },
    createTopics: async (topics, partitions) => {
      for (const { topic } of topics) bus.createTopic(topic, partitions)
    },
    send: async (records) => bus.send(records),
  }
})

testStageContract('memory', () => world)

test('R3: whatever becomes of commits whose answer is lost, each record comes out once, in order (50 seeds)', async () => {
  let lost = 0
  for (let seed = 1; seed <= 50; seed += 1) {
    const random = randomOf(seed)
    const scene = await openScene(world, `unknown-${seed}`)
    bus.fate = () => {
      const draw = random()
      if (draw > 0.3) return 'answered'
      lost += 1
      return draw < 0.15 ? 'done, answer lost' : 'not done'
    }
    await scene.send(28)
    const stage = scene.run()
    await scene.settled()
    bus.fate = () => 'answered'
    await stage.stop()
    await scene.expectInOrder()
    // no record is given up because the bus failed while it was looked at alone
    expect(await scene.deadLetters()).toEqual([])
  }
  expect(lost).toBeGreaterThan(50)
}, 120_000)

test('R1: taken over again and again at steps drawn by chance, each record comes out once, in order (50 seeds)', async () => {
  for (let seed = 1; seed <= 50; seed += 1) {
    const random = randomOf(seed)
    const scene = await openScene(world, `storm-${seed}`)
    await scene.send(60)
    const zombies: ReturnType<typeof scene.run>[] = []
    for (let round = 0; round < 3; round += 1) {
      const step = steps[Math.floor(random() * steps.length)] as Step
      const zombie = scene.run({ step, nth: 1 })
      zombies.push(zombie)
      await Promise.race([zombie.hanging, scene.settled()])
      // one of those before may wake up at any time
      if (random() < 0.5) zombies[Math.floor(random() * zombies.length)]?.release()
    }
    const last = scene.run()
    await scene.settled()
    for (const zombie of zombies) zombie.release()
    for (const zombie of zombies) expect(await zombie.ended).toMatchObject({ code: 'PRODUCER_FENCED' })
    await scene.expectInOrder()
    await last.stop()
  }
}, 120_000)

test('R1: partitions that are taken back and given out again while a batch is worked on leave no trace of it in the memory', async () => {
  const scene = await openScene(world, 'rebalanced')
  await scene.send(60)
  const stage = scene.run({ step: 'worked', nth: 2 })
  await stage.hanging
  await bus.rebalance()
  stage.release()
  await scene.settled()
  await scene.expectInOrder()
  await stage.stop()
})

test('R4: what is too large to be sent on holds up nobody: its value is kept apart, its dead letter says where, and it is remembered as refused', async () => {
  const scene = await openScene(world, 'large')
  await scene.send(4)
  await scene.send(1, () => 'x'.repeat(9_000_000))
  await scene.send(8)
  const stage = scene.run()
  const all = await until(async () => [...(await scene.cameOut()).values()].flat().length === 12 || undefined, 30_000, 20)
  expect(all).toBe(true)
  for (const out of (await scene.cameOut()).values()) expect(out.map(([number]) => number)).toEqual(out.map((_, at) => at + 1))
  const [letter, ...others] = await scene.deadLetters()
  expect(others).toEqual([])
  expect(letter).toMatchObject({
    value: Buffer.alloc(0),
    headers: { 'fl-reason': 'OUTPUT_INVALID', 'fl-value': expect.stringMatching(/^frameloop-quarantine\/dead-letters\/large\.in\/\d\/\d+-[0-9a-f]{8}\.json$/) as unknown },
  })
  await stage.stop()
})

test('R9: a record that fetches several objects takes one place among those in hand, and gives it back', async () => {
  const topicOf = (name: string): Topic<'MediaLost'> => ({ name, event: 'MediaLost', retention: 3_600_000, compacted: false })
  const [input, output] = [topicOf('large.in'), topicOf('large.out')]
  for (const name of [input.name, output.name, deadLetterTopic(input.name)]) bus.createTopic(name, 1)
  let [inHand, most] = [0, 0]
  const stage: Stage<'MediaLost'> = {
    ...{ name: 'large', version: '1', inputs: [input], outputs: [output] },
    async work({ event }, { fetch }) {
      const object = { bucket: 'b', key: 'k', bytes: 100_000_000 }
      await Promise.all([fetch(object), fetch(object)])
      inHand += 1
      most = Math.max(most, inHand)
      await new Promise((resolve) => setTimeout(resolve, 5))
      inHand -= 1
      return { kind: 'emit', outputs: [{ topic: output, event, key: event.cameraId, id: String(event.seqFrom), time: 1 }] }
    },
  }
  const store = { get: async () => Buffer.alloc(1) } as unknown as ObjectStore
  const stop = new AbortController()
  const tools = { ...{ bus, instance: '1', codec: world.codec, store, bucketPrefix: 'frameloop' }, log: openLog('contract', 'fatal'), metrics: openMetrics('contract') }
  const running = startStage(stage, tools).run(stop.signal)
  for (let seq = 1; seq <= 20; seq += 1) {
    const event = { siteId: 's', cameraId: 'c', epoch: 'e', seqFrom: seq, seqTo: seq, agentId: 'a', reason: 'r', lostAt: 1 }
    bus.send([{ topic: input.name, key: 'c', value: await world.codec.encode(input.name, 'MediaLost', event), headers: {} }])
  }
  const count = async (): Promise<number> => {
    let records = 0
    for await (const _ of bus.readTopic('test', output.name, AbortSignal.timeout(10_000))) records += 1
    return records
  }
  expect(await until(async () => (await count()) === 20 || undefined, 20_000, 20)).toBe(true)
  expect(most).toBe(2)
  stop.abort()
  await running
})

test('R6: killed five times, a stage does not slow down because of partitions that were idle all the while', async () => {
  const scene = await openScene(world, 'idle')
  const stuck: ReturnType<typeof scene.run>[] = []
  for (let death = 0; death < 5; death += 1) {
    await scene.send(28)
    const stage = scene.run({ step: 'committed', nth: 2 })
    stuck.push(stage)
    await stage.hanging
  }
  const last = scene.run()
  await scene.settled()
  await scene.expectInOrder()
  // the backlog never had a record: no beginning of it is noted, so nothing of it can become suspicious
  const places = (await scene.read(attemptsTopic)).map(({ key }) => key)
  expect(places.length).toBeGreaterThan(0)
  expect(places.filter((key) => key.includes('backlog'))).toEqual([])
  for (const zombie of stuck) zombie.release()
  await last.stop()
})
