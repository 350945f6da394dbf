/**
 * Stored frames → Kafka, in the order of each camera, then forgotten. Announced at least once: a crash between the
 * broker's acknowledgement and ours repeats a record, and validate knows it by its seq.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage } from '@frameloop/kit/fault'
import type { Producer } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import { backoffPause } from '@frameloop/kit/retry'
import type { Ms } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import { contentTypeOf } from '@frameloop/schemas/object-keys'
import { withSignature } from '@frameloop/schemas/signature'
import { topics } from '@frameloop/schemas/topics'
import type { Entry } from '../spool/contents.ts'
import type { Loss } from '../spool/losses.ts'
import type { Spool } from '../spool/spool.ts'
import { AnnouncementQueue, type Lane } from '../upload/lanes.ts'
import { type Identity, placeOf, signatureOf, type Troubles } from '../upload/uploader.ts'

const batchLimit = 200
/** Announcements of the backlog are gathered this long: nobody waits for them, and each request costs as much as many frames in it. */
const backlogGather: Ms = 100

export async function runAnnouncer(spool: Spool, producer: Producer, codec: Codec, identity: Identity, troubles: Troubles, log: Log, signal: AbortSignal): Promise<void> {
  const queue = new AnnouncementQueue<Entry>()
  const arrivals = spool.arrivals()
  const announce = async (entries: readonly Entry[], lane: Lane): Promise<void> => {
    const topic = lane === 'live' ? topics.mediaCaptured : topics.mediaBackfill
    const messages: { key: string; value: Buffer; headers: Record<string, string> }[] = []
    for (const entry of entries) {
      const { head } = entry
      const { mediaId, bucket, key } = placeOf(identity, head)
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
      const about = { key: head.cameraId, id: mediaId, time: head.capturedAt, source: identity.agentId, traceparent: head.traceparent }
      const record = await recordOf(codec, topic, event, about)
      messages.push(withSignature(record, signatureOf(identity, head)))
    }
    await producer.send({ topic: topic.name, acks: -1, messages })
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
  /** What each kind of announcement last failed with. */
  const said = new Map<string, string>()
  /** One kind waits for no other. `next`: what is to be sent now. */
  const repeat = async (kind: string, next: () => (() => Promise<void>) | undefined, gather: Ms = 0): Promise<void> => {
    for (let failures = 0; !signal.aborted; ) {
      const send = next()
      let pause = gather
      try {
        await (send?.() ?? spool.changed(1_000, signal))
        failures = 0
        said.delete(kind)
      } catch (thrown) {
        if (signal.aborted) return
        // what is announced could not be noted any more, and would be announced for ever
        if (thrown instanceof Fault && thrown.code === 'SPOOL_BROKEN') throw thrown
        failures += 1
        if (said.size === 0) log.warn({ err: thrown }, 'announcements wait for Kafka')
        said.set(kind, rootMessage(thrown))
        pause = backoffPause(failures, { first: 200, cap: 5_000 }, Math.random())
      }
      troubles.announcements = [...said.values()].at(-1) ?? ''
      if (pause > 0) await sleep(pause, undefined, { signal }).catch(() => {})
    }
  }
  const frames = (lane: Lane) => (): (() => Promise<void>) | undefined => {
    const now = Date.now()
    queue.add(arrivals(), now)
    const holds = (entry: Entry): boolean => spool.holds(entry)
    queue.prune(spool.size.frames, holds)
    const ready = queue.ready(lane, batchLimit, now, holds)
    return ready.length > 0 ? () => announce(ready, lane) : undefined
  }
  const losses = (): (() => Promise<void>) | undefined => {
    const untold = spool.losses(batchLimit)
    return untold.length > 0 ? () => tell(untold) : undefined
  }
  await Promise.all([repeat('live', frames('live')), repeat('backlog', frames('backlog'), backlogGather), repeat('losses', losses)])
}
