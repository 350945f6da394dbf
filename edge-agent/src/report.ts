/** `agents.reported`: what the agent has captured durably, how full the spool is, how each camera does. The ledger's left-hand side. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Producer } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import { topics } from '@frameloop/schemas/topics'
import type { Camera } from './agent.ts'
import type { Spool } from './spool/spool.ts'
import type { Identity } from './upload/uploader.ts'

const interval = 2_000

export async function runReporter(cameras: readonly Camera[], spool: Spool, producer: Producer, codec: Codec, identity: Identity, log: Log, signal: AbortSignal): Promise<void> {
  let failing = false
  while (!signal.aborted) {
    const now = Date.now()
    const { frames, bytes, capacity } = spool.size
    const counters = spool.counters
    const current = new Map(cameras.map((camera) => [camera.epoch, camera]))
    const ended = counters.filter((counter) => !current.has(counter.epoch) && counter.forgottenSeq >= counter.highestSeq)
    const report = {
      agentId: identity.agentId,
      siteId: identity.siteId,
      version: '0.1.0',
      reportedAt: now,
      spoolBytes: bytes,
      spoolFrames: frames,
      spoolCapacityBytes: capacity,
      cameras: [
        ...cameras.map((camera) => {
          const counter = counters.find(({ cameraId, epoch }) => cameraId === camera.settings.cameraId && epoch === camera.epoch)
          return {
            cameraId: camera.settings.cameraId,
            epoch: camera.epoch,
            highestSeq: counter?.highestSeq ?? 0,
            forgottenSeq: counter?.forgottenSeq ?? 0,
            state: camera.state,
            message: camera.message,
            framesPerSecond: Math.round(camera.framesPerSecond * 10) / 10,
            lastFrameAt: camera.lastFrameAt,
            sourceKind: camera.source.kind,
          }
        }),
        ...counters
          .filter(({ epoch }) => !current.has(epoch))
          .map((counter) => ({ ...counter, state: 'ended', message: 'an earlier epoch', framesPerSecond: 0, lastFrameAt: 0, sourceKind: '' })),
      ],
    }
    try {
      const about = { key: identity.agentId, id: identity.agentId, time: now, source: identity.agentId, traceparent: '' }
      await producer.send({
        topic: topics.agentsReported.name,
        acks: -1,
        messages: [await recordOf(codec, topics.agentsReported, report, about)],
      })
      for (const counter of ended) spool.forgetEpoch(counter)
      failing = false
    } catch (thrown) {
      if (!failing && !signal.aborted) log.warn({ err: thrown }, 'report waits for Kafka')
      failing = true
    }
    await sleep(interval, undefined, { signal }).catch(() => {})
  }
}
