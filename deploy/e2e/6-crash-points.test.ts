/** A stage is killed at every step of a batch, again and again: every record comes out once, in order, with its memory in step. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { type Step, steps } from '@frameloop/stream-processors/chain/bus'
import { readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { root } from '../src/home.ts'
import { env, pool, soon, state } from './session.ts'

const log = openLog('test', 'error')
const kafka = openKafka(env('KAFKA_BROKERS'), 'test', log)
const codec = openCodec(openRegistry(env('SCHEMA_REGISTRY_URL')))
// two of one partition and one of the other: a batch spans both
const cameras = ['a', 'b', 'd']
let sent = 0

beforeAll(async () => {
  const admin = kafka.admin()
  await admin.connect()
  const compact = [{ name: 'cleanup.policy', value: 'compact' }]
  const topics = [{ topic: 'crash.in' }, { topic: 'crash.out' }, { topic: 'crash.in.dead-letters' }, { topic: 'crash.state', configEntries: compact }]
  await createTopics(
    admin,
    topics.map((topic) => ({ ...topic, numPartitions: 2 })),
  )
  await admin.disconnect()
})
afterAll(() => pool.end())

async function send(count: number): Promise<void> {
  const producer = kafka.producer()
  await producer.connect()
  const messages = await Promise.all(
    Array.from({ length: count }, async (_, at) => {
      const cameraId = cameras[at % cameras.length] ?? ''
      const seqFrom = (sent + at - (at % cameras.length)) / cameras.length + 1
      return {
        key: cameraId,
        value: await codec.encode('crash.in', 'MediaLost', { siteId: 's', cameraId, epoch: 'e', seqFrom, seqTo: 0, agentId: 'a', reason: 'test', lostAt: 1 }),
      }
    }),
  )
  await producer.send({ topic: 'crash.in', messages })
  await producer.disconnect()
  sent += count
}

/** What has come out, per camera: [number given, seq] in the order of the topic. */
async function cameOut(): Promise<Map<string, [number, number][]>> {
  const out = new Map<string, [number, number][]>()
  for await (const record of readTopic(env('KAFKA_BROKERS'), 'test.crash', 'crash.out', AbortSignal.timeout(180_000))) {
    const { cameraId, seqFrom, seqTo } = await codec.decode('MediaLost', record.value)
    out.set(cameraId, [...(out.get(cameraId) ?? []), [seqTo, seqFrom]])
  }
  return out
}

/** Resolves with how it ended: a signal when it has killed itself. */
function run(step: Step | 'never', nth: number, delay: number): { readonly ended: Promise<NodeJS.Signals | null>; stop(): void } {
  const child = spawn(process.execPath, ['--import', 'tsx', join(root, 'deploy/e2e/crasher.ts'), step, String(nth), String(delay)], {
    cwd: root,
    env: { ...process.env, ...state.environment },
    stdio: 'ignore',
  })
  return { ended: new Promise((resolve) => child.once('exit', (_, signal) => resolve(signal))), stop: () => child.kill('SIGTERM') }
}

test.each(steps)('killed right after the step "%s", nothing is lost, doubled or out of order', async (step) => {
  await send(30)
  // the second batch, so that the first has left something committed
  expect(await run(step, 2, step === 'produced' ? 20 : 0).ended).toBe('SIGKILL')
  const again = run('never', 0, 0)
  const expected = sent / cameras.length
  const isOut = async (): Promise<boolean> => {
    const out = await cameOut()
    return cameras.every((cameraId) => (out.get(cameraId)?.length ?? 0) >= expected)
  }
  await soon(async () => (await isOut()) || undefined)
  again.stop()
  await again.ended
  const inOrder = Array.from({ length: expected }, (_, at) => [at + 1, at + 1])
  for (const cameraId of cameras) expect((await cameOut()).get(cameraId)).toEqual(inOrder)
})
