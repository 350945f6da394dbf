/** Spool → S3: live frames first, then what has waited, oldest first; several at a time, each exactly once under its own key. */

import type { KeyObject } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import { isStoreTransient, type ObjectStore } from '@frameloop/kit/object-store'
import { backoffPause } from '@frameloop/kit/retry'
import { Rooms } from '@frameloop/kit/rooms'
import type { Bytes, Ms } from '@frameloop/kit/units'
import { mediaIdOf } from '@frameloop/schemas/ids'
import { bucketName, contentTypeOf, rawKey } from '@frameloop/schemas/object-keys'
import { signClaim } from '@frameloop/schemas/signature'
import { lastMoment, soonAfter } from '../soon-after.ts'
import type { Entry, FrameHead } from '../spool/contents.ts'
import { isDamage, type Spool } from '../spool/spool.ts'
import { backlogPlaces, backlogRest, laneOf, openingAt, takenAt, UploadQueue } from './lanes.ts'

export interface Identity {
  readonly agentId: string
  readonly siteId: string
  readonly bucketPrefix: string
  /** What is announced is signed with it. */
  readonly signingKey?: KeyObject
}

/** The agent's word for a frame; undefined where it has no key. */
export function signatureOf({ siteId, agentId, signingKey }: Identity, head: FrameHead): string | undefined {
  return signingKey && signClaim({ ...head, siteId, agentId }, signingKey)
}

/** Where a frame belongs in the object store; computed, never stored. */
export function placeOf(identity: Identity, head: FrameHead): { readonly mediaId: string; readonly bucket: string; readonly key: string } {
  const mediaId = mediaIdOf(identity.agentId, head.cameraId, head.epoch, head.seq)
  return {
    mediaId,
    bucket: bucketName(identity.bucketPrefix, 'raw'),
    key: rawKey({ siteId: identity.siteId, cameraId: head.cameraId, mediaId, capturedAt: head.capturedAt, extension: head.extension }),
  }
}

export interface UploadLimits {
  /** Uploads at a time. */
  readonly concurrency: number
  /** Most bytes a second; 0: as many as go through. */
  readonly limit: Bytes
  /** When, and what goes out at other times. */
  readonly windows: readonly string[]
  readonly outside: 'live' | 'nothing'
}

/** Why frames do not go on, in sentences, as long as they do not. */
export interface Troubles {
  /** Per camera: what the object store last said to a frame of it. */
  readonly uploads: Map<string, string>
  /** What Kafka last said. */
  announcements: string
}

/** `S3 refused it: AccessDenied: Access Denied.`, or that nobody answered. */
function storeSaid(thrown: unknown): string {
  return thrown instanceof Fault ? `S3 does not answer: ${rootMessage(thrown)}` : `S3 refused it: ${(thrown as Error).name}: ${rootMessage(thrown)}`
}

/** Whether it has answered and will not have frames of this camera now: rights that are missing, a bucket that is. Others may go on. */
function isRefusal(thrown: unknown): boolean {
  const status = (thrown as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode ?? 0
  return status >= 400 && status < 500 && ![408, 409, 412, 429].includes(status)
}

const backoff = { first: 200, cap: 5_000 } as const

/** When the uplink is free again after `bytes` more, so that no more than `limit` bytes a second go out; `free` is when it was. */
export function freeAfter(free: Ms, now: Ms, bytes: Bytes, limit: Bytes): Ms {
  return limit <= 0 ? now : Math.max(free, now) + (bytes * 1000) / limit
}

export async function runUploader(
  spool: Spool,
  store: ObjectStore,
  identity: Identity,
  limits: () => UploadLimits,
  troubles: Troubles,
  log: Log,
  signal: AbortSignal,
): Promise<void> {
  let failures = 0
  // by a clock that nobody sets: a box on a pole has hers put right when it gets a network
  const clock = (): Ms => performance.now()
  let [free, limitBefore]: [Ms, Bytes] = [0, 0]
  /** When a live frame last went out. */
  let liveAt: Ms = Number.NEGATIVE_INFINITY
  /** Frames under way that have waited, and when the next one may go. */
  let [waited, restsUntil]: [number, Ms] = [0, 0]
  const queue = new UploadQueue<Entry>()
  const rooms = new Rooms()
  const arrivals = spool.arrivals()
  /** Cameras whose frames are refused: how often in a row, and until when they are held. */
  const refused = new Map<string, { readonly times: number; readonly until: Ms }>()
  using late = soonAfter(signal, lastMoment)
  const upload = async (entry: Entry): Promise<void> => {
    const { head } = entry
    const { mediaId, bucket, key } = placeOf(identity, head)
    const signature = signatureOf(identity, head)
    const room = rooms.take(entry.bytes)
    let body: Buffer<ArrayBuffer>
    try {
      body = await spool.read(entry, room)
    } catch (thrown) {
      if (isDamage(thrown)) {
        log.error({ err: thrown, key }, 'frame cannot be read from the spool')
        spool.markUnreadable(entry)
        return
      }
      // out of descriptors or memory: it lies there whole
      if (failures === 0) log.warn({ err: thrown, key }, 'frame cannot be read from the spool now')
      failures += 1
      entry.busy = false
      queue.again(entry, Date.now())
      return
    }
    try {
      const stored = await store.putOnce(
        {
          bucket,
          key,
          body,
          contentType: contentTypeOf(head.extension),
          sha256: head.sha256,
          // the whole identity rides on the object, so that what a broker lost can be announced again
          metadata: {
            'media-id': mediaId,
            'agent-id': identity.agentId,
            'site-id': identity.siteId,
            'camera-id': head.cameraId,
            epoch: head.epoch,
            seq: String(head.seq),
            'captured-at': String(head.capturedAt),
            ...(signature === undefined ? {} : { signature }),
            ...(head.mediaOffsetUs === null ? {} : { 'media-offset-us': String(head.mediaOffsetUs) }),
          },
        },
        late.signal,
      )
      // one that failed may still be on its way out
      rooms.give(room.buffer)
      spool.markStored(entry, stored.versionId).catch((thrown: unknown) => log.error({ err: thrown, key }, 'upload not noted in the spool'))
      failures = 0
      if (refused.delete(entry.cameraId)) queue.release(entry.cameraId)
      troubles.uploads.delete(entry.cameraId)
    } catch (thrown) {
      entry.busy = false
      if (late.signal.aborted) return
      if (!isStoreTransient(thrown)) {
        log.error({ err: thrown, key }, 'frame refused by the object store')
        spool.markUnreadable(entry)
        return
      }
      troubles.uploads.set(entry.cameraId, storeSaid(thrown))
      queue.again(entry, Date.now())
      if (isRefusal(thrown)) {
        failures = 0
        const now = clock()
        const before = refused.get(entry.cameraId)
        // those that were under way with it say the same
        if (before && before.until > now) return
        const times = (before?.times ?? 0) + 1
        refused.set(entry.cameraId, { times, until: now + backoffPause(times, backoff, Math.random()) })
        queue.hold(entry.cameraId)
        if (times === 1) log.warn({ err: thrown, cameraId: entry.cameraId }, 'frames of a camera are refused by the object store')
        return
      }
      failures += 1
      if (failures === 1) log.warn({ err: thrown }, 'uploads wait for the object store')
    }
  }
  const running = new Set<Promise<void>>()
  while (!signal.aborted) {
    // they may change from afar
    const { concurrency, limit, windows, outside } = limits()
    // what was sent under another limit is no debt under this one
    if (limit !== limitBefore) free = clock()
    limitBefore = limit
    queue.add(
      arrivals().filter(({ stored }) => !stored),
      Date.now(),
    )
    queue.prune(spool.size.frames, (entry) => spool.holds(entry))
    for (const [cameraId, { until }] of refused) if (until <= clock()) queue.release(cameraId)
    const rest = Math.max(0, Math.ceil(restsUntil - clock()))
    while (running.size < concurrency) {
      const now = Date.now()
      if (free > clock()) break
      const opening = openingAt(windows, outside, new Date(now))
      if (opening === 'nothing') break
      const entry = queue.take(now, rest === 0 && waited < backlogPlaces(opening, concurrency, clock() - liveAt))
      if (!entry) break
      if (!spool.holds(entry)) continue
      const isLive = laneOf(takenAt(entry.head), now) === 'live'
      if (isLive) liveAt = clock()
      else waited += 1
      free = freeAfter(free, clock(), entry.bytes, limit)
      entry.busy = true
      const since = clock()
      const task: Promise<void> = upload(entry).finally(() => {
        running.delete(task)
        if (isLive) return
        waited -= 1
        restsUntil = clock() + backlogRest(clock() - since, clock() - liveAt)
      })
      running.add(task)
    }
    if (failures > 0) await sleep(backoffPause(failures, backoff, Math.random()), undefined, { signal }).catch(() => {})
    // the limit may be changed meanwhile
    const pause = Math.min(1_000, free - clock())
    if (pause > 0) await sleep(pause, undefined, { signal }).catch(() => {})
    else await Promise.race([...running, spool.changed(rest || 1_000, signal)])
  }
  await Promise.allSettled(running)
}
