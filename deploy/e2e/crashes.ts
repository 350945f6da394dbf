/** Records for the stage of `crasher.ts`, which ends itself at a step, and what has come out of it. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { createTopics, openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import type { Step } from '@frameloop/stream-processors/chain/bus'
import { readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import { root } from '../src/home.ts'

export interface Crasher extends AsyncDisposable {
  /** Resolves with how it ended: a signal when it has killed itself, `undefined` when it still runs after a minute. */
  readonly ended: Promise<NodeJS.Signals | null | undefined>
}

export interface Crashes {
  /** Announces as many records, those of one camera in order. */
  send(count: number): Promise<void>
  /** Starts the stage; it kills itself `delay` ms after the `nth` time that it has done the step. */
  run(step: Step | 'never', nth: number, delay: number): Crasher
  /** Whether as much has come out as was sent; what came out of each camera: [number given, seq] in the order of the topic, and what should have. */
  cameOut(): Promise<{
    readonly isAll: boolean
    readonly numbered: Readonly<Record<string, readonly [number, number][]>>
    readonly wanted: Readonly<Record<string, readonly [number, number][]>>
  }>
}

// two of one partition and one of the other: a batch spans both
const cameras = ['a', 'b', 'd']

/** @param env the environment of the stack that it runs on */
export async function openCrashes(env: Readonly<Record<string, string>>): Promise<Crashes> {
  const brokers = env['KAFKA_BROKERS'] ?? ''
  const kafka = openKafka(brokers, 'test', openLog('test', 'error'))
  const codec = openCodec(openRegistry(env['SCHEMA_REGISTRY_URL'] ?? ''))
  const admin = kafka.admin()
  await admin.connect()
  const compact = [{ name: 'cleanup.policy', value: 'compact' }]
  const topics = [{ topic: 'crash.in' }, { topic: 'crash.out' }, { topic: 'crash.in.dead-letters' }, { topic: 'crash.state', configEntries: compact }]
  await createTopics(
    admin,
    topics.map((topic) => ({ ...topic, numPartitions: 2 })),
  )
  await admin.disconnect()
  let sent = 0
  return {
    async send(count) {
      const producer = kafka.producer()
      await producer.connect()
      const messages = await Promise.all(
        Array.from({ length: count }, async (_, index) => {
          const at = sent + index
          const cameraId = cameras[at % cameras.length] ?? ''
          const seqFrom = Math.floor(at / cameras.length) + 1
          return {
            key: cameraId,
            value: await codec.encode('crash.in', 'MediaLost', { siteId: 's', cameraId, epoch: 'e', seqFrom, seqTo: 0, agentId: 'a', reason: 'test', lostAt: 1 }),
          }
        }),
      )
      await producer.send({ topic: 'crash.in', messages })
      await producer.disconnect()
      sent += count
    },
    run(step, nth, delay) {
      const child = spawn(process.execPath, ['--import', 'tsx', join(root, 'deploy/e2e/crasher.ts'), step, String(nth), String(delay)], {
        cwd: root,
        env: { ...process.env, ...env },
        stdio: 'ignore',
      })
      const exited = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
      return {
        ended: Promise.race([exited.then(([, signal]) => signal), sleep(60_000, undefined, { ref: false })]),
        async [Symbol.asyncDispose]() {
          child.kill('SIGTERM')
          await Promise.race([exited, sleep(20_000, undefined, { ref: false })])
          child.kill('SIGKILL')
          await exited
        },
      }
    },
    async cameOut() {
      const numbered: Record<string, [number, number][]> = {}
      for await (const record of readTopic(brokers, 'test.crash', 'crash.out', AbortSignal.timeout(180_000))) {
        const { cameraId, seqFrom, seqTo } = await codec.decode('MediaLost', record.value)
        numbered[cameraId] = [...(numbered[cameraId] ?? []), [seqTo, seqFrom]]
      }
      const wanted = Object.fromEntries(
        cameras.map((cameraId, index) => [cameraId, Array.from({ length: Math.ceil((sent - index) / cameras.length) }, (_, at): [number, number] => [at + 1, at + 1])]),
      )
      return { isAll: cameras.every((cameraId) => (numbered[cameraId]?.length ?? 0) >= (wanted[cameraId]?.length ?? 0)), numbered, wanted }
    },
  }
}
