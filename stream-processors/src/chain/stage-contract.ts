/** What the runtime promises (R1 to R8), as tests that hold on any bus: in memory beside the code, on Kafka end to end. */

import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import { openLog } from '@frameloop/kit/log'
import { openMetrics } from '@frameloop/kit/metrics'
import type { ObjectStore } from '@frameloop/kit/object-store'
import { until } from '@frameloop/kit/retry'
import type { Codec } from '@frameloop/schemas/codec'
import type { MediaLost } from '@frameloop/schemas/events'
import { deadLetterTopic, stateTopic, type Topic } from '@frameloop/schemas/topics'
import { expect, test } from 'vitest'
import { type Bus, type Produced, type Step, steps } from './bus.ts'
import { startStage } from './run-stage.ts'
import type { BusRecord, Stage } from './stage.ts'

export interface ContractWorld {
  readonly bus: Bus
  readonly codec: Codec
  readonly store: ObjectStore
  readonly waitBackoff?: { readonly first: number; readonly cap: number }
  createTopics(topics: readonly { readonly topic: string; readonly compacted: boolean }[], partitions: number): Promise<void>
  send(records: readonly Produced[]): Promise<void>
}

const cameras = ['a', 'b', 'c', 'd']
const log = openLog('contract', 'fatal')
const topicOf = (name: string): Topic<'MediaLost'> => ({ name, event: 'MediaLost', retention: 3_600_000, compacted: false })

/** A world of one stage: its records, the stage itself, and what has come out of it. */
export async function openScene(world: ContractWorld, name: string) {
  const input = topicOf(`${name}.in`)
  const backlog = topicOf(`${name}.backlog`)
  const output = topicOf(`${name}.out`)
  await world.createTopics(
    [
      { topic: input.name, compacted: false },
      { topic: backlog.name, compacted: false },
      { topic: output.name, compacted: false },
      { topic: deadLetterTopic(input.name), compacted: false },
      { topic: stateTopic(name), compacted: true },
    ],
    3,
  )
  /** Cameras whose records wait, and what they wait for. */
  const waiting = new Set<string>()
  /** Numbers each camera's records 1, 2, 3, …: `seqTo` is the number, taken from the memory. `refuse` is refused. */
  const stage: Stage<'MediaLost'> = {
    name,
    version: '1',
    inputs: [input],
    backlog: [backlog],
    outputs: [output],
    batch: 7,
    async work({ event }) {
      if (event.reason === 'refuse') throw new Fault('PICTURE_UNREADABLE', 'refused')
      if (waiting.has(event.cameraId)) return { kind: 'retry', cause: new Error('the world is wrong') }
      const body = Buffer.from(`${event.cameraId} ${event.seqFrom}`)
      const put = { role: 'processed' as const, key: `${name}/${event.cameraId}/${event.seqFrom}`, body, sha256: sha256Hex(body), contentType: 'text/plain', metadata: {} }
      return { kind: 'emit', puts: [put], outputs: [] }
    },
    memory: {
      keyOf: ({ cameraId }) => cameraId,
      judge: ({ event }, outcome, remembered) => {
        if (outcome.kind !== 'emit') return { outcome, remember: remembered }
        const number = ((remembered as number | undefined) ?? 0) + 1
        const numbered = { topic: output, event: { ...event, seqTo: number }, key: event.cameraId, id: `${event.cameraId}-${event.seqFrom}`, time: event.lostAt }
        return { outcome: { ...outcome, outputs: [numbered] }, remember: number }
      },
    },
  }
  const sent = new Map<string, number>()
  const scene = {
    waiting,
    async send(count: number, reason: (seq: number) => string = () => 'fine', lane: 'live' | 'backlog' = 'live'): Promise<void> {
      const records: Produced[] = []
      for (let at = 0; at < count; at += 1) {
        const cameraId = cameras[at % cameras.length] ?? ''
        const seqFrom = (sent.get(cameraId) ?? 0) + 1
        sent.set(cameraId, seqFrom)
        const event: MediaLost = { siteId: 's', cameraId, epoch: lane, seqFrom, seqTo: 0, agentId: 'a', reason: reason(seqFrom), lostAt: 1 }
        records.push({ topic: lane === 'live' ? input.name : backlog.name, key: cameraId, value: await world.codec.encode(input.name, 'MediaLost', event), headers: {} })
      }
      await world.send(records)
    },
    sentOf: (cameraId: string): number => sent.get(cameraId) ?? 0,
    async read(topic: string): Promise<BusRecord[]> {
      const records: BusRecord[] = []
      for await (const record of world.bus.readTopic(`contract.${name}`, topic, AbortSignal.timeout(60_000))) records.push(record)
      return records
    },
    /** Seqs of each camera and lane in the order of the topic, and of each partition which lane came out when. */
    async lanesOut(): Promise<{ readonly seqs: Map<string, number[]>; readonly lanes: Map<number, string[]> }> {
      const [seqs, lanes] = [new Map<string, number[]>(), new Map<number, string[]>()]
      for (const { partition, value } of await scene.read(output.name)) {
        const { cameraId, epoch, seqFrom } = await world.codec.decode('MediaLost', value)
        seqs.set(`${cameraId} ${epoch}`, [...(seqs.get(`${cameraId} ${epoch}`) ?? []), seqFrom])
        lanes.set(partition, [...(lanes.get(partition) ?? []), epoch])
      }
      return { seqs, lanes }
    },
    /** Per camera: [number given, seq] in the order of the topic. */
    async cameOut(): Promise<Map<string, [number, number][]>> {
      const out = new Map<string, [number, number][]>()
      for (const { value } of await scene.read(output.name)) {
        const { cameraId, seqFrom, seqTo } = await world.codec.decode('MediaLost', value)
        out.set(cameraId, [...(out.get(cameraId) ?? []), [seqTo, seqFrom]])
      }
      return out
    },
    deadLetters: () => scene.read(deadLetterTopic(input.name)),
    inputs: () => scene.read(input.name),
    /** Runs it; `hangAt` leaves it standing at a step of its n-th batch, like a process that was stopped, until `release`. */
    run(hangAt?: { readonly step: Step; readonly nth: number }) {
      const controller = new AbortController()
      let release = (): void => {}
      const released = new Promise<void>((resolve) => {
        release = resolve
      })
      let hangs = (): void => {}
      const hanging = new Promise<void>((resolve) => {
        hangs = resolve
      })
      let seen = 0
      const onStep = async (step: Step): Promise<void> => {
        if (!hangAt || step !== hangAt.step) return
        seen += 1
        if (seen !== hangAt.nth) return
        hangs()
        await released
      }
      const running = startStage(stage, {
        bus: world.bus,
        instance: '1',
        codec: world.codec,
        store: world.store,
        bucketPrefix: 'frameloop',
        log,
        metrics: openMetrics('contract'),
        onStep,
        ...(world.waitBackoff ? { waitBackoff: world.waitBackoff } : {}),
      })
      const ended = running.run(controller.signal).then(
        () => undefined,
        (thrown: unknown) => thrown as { code?: string },
      )
      return {
        hanging,
        release,
        /** What it ended with, or undefined. */
        ended,
        async stop(): Promise<void> {
          controller.abort()
          release()
          await ended
        },
      }
    },
    /** Until as many have come out of every camera as went in, less those refused. */
    async settled(less = 0): Promise<void> {
      const done = await until(
        async () => {
          const out = await scene.cameOut()
          return cameras.every((camera) => (out.get(camera)?.length ?? 0) >= scene.sentOf(camera) - less) || undefined
        },
        60_000,
        20,
      )
      if (!done) throw new Error(`not everything came out: ${JSON.stringify([...(await scene.cameOut())].map(([camera, list]) => [camera, list.length, scene.sentOf(camera)]))}`)
    },
    /** Each record once, in its order, numbered without a gap by the memory. */
    async expectInOrder(seqs: (camera: string) => readonly number[] = (camera) => Array.from({ length: scene.sentOf(camera) }, (_, at) => at + 1)): Promise<void> {
      const out = await scene.cameOut()
      for (const camera of cameras) expect(out.get(camera), camera).toEqual(seqs(camera).map((seq, at) => [at + 1, seq]))
    },
  }
  return scene
}

export function testStageContract(prefix: string, world: () => ContractWorld): void {
  test.each(steps)('R1, R3: left standing after the step "%s" and taken over, nothing is lost, doubled or out of order, and the zombie writes nothing more', async (step) => {
    const scene = await openScene(world(), `${prefix}.zombie-${step.replace(' ', '-')}`)
    await scene.send(40)
    const zombie = scene.run({ step, nth: 2 })
    await zombie.hanging
    const successor = scene.run()
    await scene.settled()
    await scene.expectInOrder()
    // the zombie wakes up in the middle of its batch
    zombie.release()
    expect(await zombie.ended).toMatchObject({ code: 'PRODUCER_FENCED' })
    await scene.send(20)
    await scene.settled()
    await scene.expectInOrder()
    await successor.stop()
  })

  test('R4: what is refused becomes a dead letter with its key and value unchanged, in order, and the others go on', async () => {
    const scene = await openScene(world(), `${prefix}.refused`)
    await scene.send(40, (seq) => (seq % 3 === 0 ? 'refuse' : 'fine'))
    const stage = scene.run()
    await scene.settled(3)
    const letters = await until(async () => (await scene.deadLetters()).length === 12 || undefined, 30_000, 20)
    expect(letters).toBe(true)
    await stage.stop()
    await scene.expectInOrder((camera) => Array.from({ length: scene.sentOf(camera) }, (_, at) => at + 1).filter((seq) => seq % 3 !== 0))
    const inputs = new Map((await scene.inputs()).map((record) => [`${record.partition} ${record.offset}`, record]))
    for (const letter of await scene.deadLetters()) {
      const origin = inputs.get(`${letter.headers['fl-origin-partition']} ${letter.headers['fl-origin-offset']}`)
      expect(letter.key).toBe(origin?.key)
      expect(letter.value.equals(origin?.value ?? Buffer.alloc(1))).toBe(true)
      expect(letter.headers).toMatchObject({ 'fl-reason': 'PICTURE_UNREADABLE', 'fl-message': 'refused' })
    }
  })

  test('R5: what must wait holds back its own partition only, and is not lost', async () => {
    const scene = await openScene(world(), `${prefix}.waiting`)
    await scene.send(40)
    scene.waiting.add('a')
    const stage = scene.run()
    const partitionOf = new Map((await scene.inputs()).map(({ key, partition }) => [key, partition]))
    const free = cameras.filter((camera) => partitionOf.get(camera) !== partitionOf.get('a'))
    expect(free.length).toBeGreaterThan(0)
    const othersOut = await until(
      async () => {
        const out = await scene.cameOut()
        return free.every((camera) => out.get(camera)?.length === scene.sentOf(camera)) || undefined
      },
      30_000,
      20,
    )
    expect(othersOut).toBe(true)
    expect((await scene.cameOut()).get('a')).toBeUndefined()
    scene.waiting.clear()
    await scene.settled()
    await scene.expectInOrder()
    await stage.stop()
  })

  test('R8: what is live goes before the backlog, each lane in its own order, and nothing of either is lost', async () => {
    const scene = await openScene(world(), `${prefix}.lanes`)
    await scene.send(120, () => 'fine', 'backlog')
    await scene.send(40)
    const stage = scene.run()
    await scene.settled()
    await stage.stop()
    const { seqs, lanes } = await scene.lanesOut()
    for (const camera of cameras) {
      expect(seqs.get(`${camera} backlog`)).toEqual(Array.from({ length: 30 }, (_, at) => at + 1))
      expect(seqs.get(`${camera} live`)).toEqual(Array.from({ length: 10 }, (_, at) => at + 31))
    }
    for (const list of lanes.values()) {
      if (!list.includes('live')) continue
      // batches of seven were taken of the backlog only while live records were still on their way to us
      const before = list.slice(0, list.lastIndexOf('live')).filter((lane) => lane === 'backlog').length
      expect(before).toBeLessThan((list.filter((lane) => lane === 'backlog').length * 2) / 3)
    }
  })
}
