/** `agents.reported`: what the agent has captured durably, how full the spool is, how each camera does. The ledger's left-hand side. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { Producer } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { type EpochMs, type Ms, showMs } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import type { AgentReported } from '@frameloop/schemas/events'
import { topics } from '@frameloop/schemas/topics'
import type { Camera } from './camera.ts'
import type { DesiredState } from './desired.ts'
import type { EpochCounter } from './spool/contents.ts'
import type { Spool } from './spool/spool.ts'
import type { Troubles } from './upload/uploader.ts'

const interval = 2_000
const earlierEpoch = 'an earlier epoch'

/** Whether a reported camera runs, and is not only remembered until all of its frames are delivered. */
export function isCurrent({ message }: { readonly message: string }): boolean {
  return message !== earlierEpoch
}

/** How many frames wait, and how old the one is that waits longest. */
export function waitingText({ spoolFrames, oldestWaitingAt }: Pick<AgentReported, 'spoolFrames' | 'oldestWaitingAt'>, now: EpochMs): string {
  return `${spoolFrames} frames wait${oldestWaitingAt > 0 ? `, the first of them ${showMs(Math.max(0, now - oldestWaitingAt))} old` : ''}`
}

export interface AboutAgent {
  readonly agentId: string
  readonly siteId: string
  readonly version: string
  readonly desired: DesiredState
  readonly clock: { readonly skew: Ms }
  readonly troubles: Troubles
}

export function reportOf(cameras: readonly Camera[], spool: Spool, { desired, clock, troubles, ...about }: AboutAgent, now: EpochMs): AgentReported {
  const { frames, bytes, capacity } = spool.size
  const { counters } = spool
  const current = new Set<string>(cameras.map(({ epoch }) => epoch))
  return {
    ...about,
    reportedAt: now,
    spoolBytes: bytes,
    spoolFrames: frames,
    spoolCapacityBytes: capacity,
    desiredVersion: desired.version,
    desiredError: desired.error,
    clockSkewMs: Math.round(clock.skew),
    announceError: troubles.announcements,
    oldestWaitingAt: spool.oldestAt,
    cameras: [
      ...cameras.map((camera) => {
        const counter = counters.find(({ cameraId, epoch }) => cameraId === camera.settings.id && epoch === camera.epoch)
        return {
          cameraId: camera.settings.id,
          epoch: camera.epoch,
          highestSeq: counter?.highestSeq ?? 0,
          forgottenSeq: counter?.forgottenSeq ?? 0,
          state: camera.state,
          message: camera.message,
          framesPerSecond: Math.round(camera.framesPerSecond * 10) / 10,
          lastFrameAt: camera.lastFrameAt,
          sourceKind: camera.source.kind,
          health: [...camera.marks],
          uploadError: troubles.uploads.get(camera.settings.id) ?? '',
        }
      }),
      ...counters
        .filter(({ epoch }) => !current.has(epoch))
        .map(({ cameraId, epoch, highestSeq, forgottenSeq }) => ({
          ...{ cameraId, epoch, highestSeq, forgottenSeq },
          ...{ state: 'ended', message: earlierEpoch, framesPerSecond: 0, lastFrameAt: 0, sourceKind: '', health: [], uploadError: '' },
        })),
    ],
  }
}

export async function runReporter(
  cameras: () => readonly Camera[],
  spool: Spool,
  producer: Producer,
  codec: Codec,
  about: AboutAgent,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  let failing = false
  while (!signal.aborted) {
    const now = Date.now()
    const report = reportOf(cameras(), spool, about, now)
    const running = new Set<string>(cameras().map(({ epoch }) => epoch))
    const ended = spool.counters.filter((counter: EpochCounter) => !running.has(counter.epoch) && counter.forgottenSeq >= counter.highestSeq)
    try {
      const { agentId } = about
      await producer.send({
        topic: topics.agentsReported.name,
        acks: -1,
        messages: [await recordOf(codec, topics.agentsReported, report, { key: agentId, id: agentId, time: now, source: agentId, traceparent: '' })],
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
