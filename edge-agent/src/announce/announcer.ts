/**
 * Stored frames → Kafka, in the order of each camera, then forgotten. Announced at least once: a crash between the
 * broker's acknowledgement and ours repeats a record, and validate knows it by its seq.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { rootMessage } from '@frameloop/kit/fault'
import type { Producer } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { backoffPause } from '@frameloop/kit/retry'
import type { EpochMs } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import { contentTypeOf } from '@frameloop/schemas/object-keys'
import { signatureHeader } from '@frameloop/schemas/signature'
import { topics } from '@frameloop/schemas/topics'
import type { Entry } from '../spool/contents.ts'
import type { Loss } from '../spool/losses.ts'
import type { Spool } from '../spool/spool.ts'
import { laneOf } from '../upload/lanes.ts'
import { type Identity, placeOf, signatureOf, type Troubles } from '../upload/uploader.ts'

const batchLimit = 200

/** Of each camera and lane the leading frames that are stored: order holds, and one slow upload delays only its own. */
export function announceable(entries: Iterable<Entry>, limit: number, now: EpochMs): Entry[] {
  const blocked = new Set<string>()
  const ready: Entry[] = []
  for (const entry of entries) {
    if (ready.length >= limit) break
    const queue = `${laneOf(entry.head.capturedAt, now)} ${entry.cameraId}`
    if (blocked.has(queue)) continue
    if (entry.stored) ready.push(entry)
    else blocked.add(queue)
  }
  return ready
}

export async function runAnnouncer(spool: Spool, producer: Producer, codec: Codec, identity: Identity, troubles: Troubles, log: Log, signal: AbortSignal): Promise<void> {
  const announce = async (entries: readonly Entry[], now: EpochMs): Promise<void> => {
    const batches = new Map<string, { key: string; value: Buffer; headers: Record<string, string> }[]>()
    for (const entry of entries) {
      const { head } = entry
      const { mediaId, bucket, key } = placeOf(identity, head)
      const lane = laneOf(head.capturedAt, now)
      const topic = lane === 'live' ? topics.mediaCaptured : topics.mediaBackfill
      const event = {
        siteId: identity.siteId,
        cameraId: head.cameraId,
        mediaId,
        epoch: head.epoch,
        seq: head.seq,
        lane,
        source: 'camera',
        kind: head.kind,
        agentId: identity.agentId,
        capturedAt: head.capturedAt,
        mediaOffsetUs: head.mediaOffsetUs,
        object: { bucket, key, sha256: head.sha256, bytes: entry.bytes, versionId: entry.stored?.versionId ?? '', contentType: contentTypeOf(head.extension) },
        width: head.width,
        height: head.height,
        motion: head.motion ?? null,
        sourceName: head.sourceName,
      }
      const batch = batches.get(topic.name) ?? []
      const about = { key: head.cameraId, id: mediaId, time: head.capturedAt, source: identity.agentId, traceparent: head.traceparent }
      const record = await recordOf(codec, topic, event, about)
      const signature = signatureOf(identity, head)
      batch.push(signature === undefined ? record : { ...record, headers: { ...record.headers, [signatureHeader]: signature } })
      batches.set(topic.name, batch)
    }
    await producer.sendBatch({ acks: -1, topicMessages: [...batches].map(([topic, messages]) => ({ topic, messages })) })
    await spool.markAnnounced(entries)
  }
  const tell = async (losses: readonly Loss[]): Promise<void> => {
    const messages = await Promise.all(
      losses.map((loss) =>
        recordOf(
          codec,
          topics.mediaLost,
          { siteId: identity.siteId, agentId: identity.agentId, ...loss },
          { key: loss.cameraId, id: `${loss.epoch}-${loss.seqFrom}`, time: loss.lostAt, source: identity.agentId, traceparent: '' },
        ),
      ),
    )
    await producer.send({ topic: topics.mediaLost.name, acks: -1, messages })
    await spool.markTold(losses)
  }
  let failures = 0
  while (!signal.aborted) {
    const now = Date.now()
    const ready = announceable(spool.entries, batchLimit, now)
    const losses = spool.losses(batchLimit)
    try {
      if (ready.length > 0) await announce(ready, now)
      if (losses.length > 0) await tell(losses)
      failures = 0
      troubles.announcements = ''
    } catch (thrown) {
      if (signal.aborted) return
      failures += 1
      troubles.announcements = rootMessage(thrown)
      if (failures === 1) log.warn({ err: thrown }, 'announcements wait for Kafka')
      await sleep(backoffPause(failures, { first: 200, cap: 5_000 }, Math.random()), undefined, { signal }).catch(() => {})
      continue
    }
    if (ready.length === 0 && losses.length === 0) await spool.changed(1_000, signal)
  }
}
