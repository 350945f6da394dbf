/** media.captured → media.validated, and the same for the backlog: the bytes are what was announced, whole, of a known kind, and new. */

import { sha256Hex } from '@frameloop/kit/digest'
import { Fault } from '@frameloop/kit/fault'
import type { EpochMs } from '@frameloop/kit/units'
import type { MediaCaptured, MediaValidated } from '@frameloop/schemas/events'
import { signatureHeader } from '@frameloop/schemas/signature'
import { inLane, topics } from '@frameloop/schemas/topics'
import { isReason } from '../chain/reasons.ts'
import type { Incoming, ObjectToPut, Outcome, Output, Stage, StageContext } from '../chain/stage.ts'
import { type ClipTools, probeClip, sniffClip } from '../clip.ts'
import { sniffPicture } from '../picture/picture-header.ts'
import type { PixelWork } from '../pixels/pixel-work.ts'
import { type AgentKeys, disbelief } from './agent-keys.ts'
import { type Arrival, type Before, compare, marksOf, refuse, wrongIdentity } from './rules.ts'
import { addSeq, hasSeq, type Ranges, removeSeq } from './seen-seqs.ts'

const version = '2'

export interface ValidateTools extends ClipTools {
  readonly pixels: PixelWork
  readonly keys: AgentKeys
  /** Where media lie. */
  readonly bucket: string
  /** Agents without a key are not believed. */
  readonly requireSignatures: boolean
}

type Measured = Pick<MediaValidated, 'format' | 'width' | 'height' | 'durationUs' | 'brightness' | 'sharpness' | 'phash' | 'fingerprint' | 'marks'>

async function measurePicture(bytes: Buffer, format: string, pixels: PixelWork, arrival: Arrival): Promise<Measured> {
  const look = await pixels.look(bytes)
  return { format, durationUs: 0, ...look, marks: marksOf(look, arrival) }
}

async function measureClip(bytes: Buffer, tools: ClipTools, arrival: Arrival, signal: AbortSignal): Promise<Measured> {
  const { format, width, height, durationUs, isTruncated } = await probeClip(bytes, tools, signal)
  const marks = [...marksOf(undefined, arrival), ...(isTruncated ? ['truncated'] : [])]
  return { format, width, height, durationUs, brightness: 0, sharpness: 0, phash: '', fingerprint: '', marks }
}

/** Refused content is kept where nothing reads it by itself: for whoever wants to know what it was. */
function quarantined({ object, mediaId, cameraId }: MediaCaptured, bytes: Buffer, reason: string): ObjectToPut {
  const metadata = { 'media-id': mediaId, 'camera-id': cameraId, reason }
  return { role: 'quarantine', key: object.key, body: bytes, sha256: sha256Hex(bytes), contentType: 'application/octet-stream', metadata }
}

async function validate({ event, record }: Incoming<'MediaCaptured'>, tools: ValidateTools, context: StageContext): Promise<Outcome> {
  if (!tools.keys.loaded) return { kind: 'retry', cause: new Fault('DATABASE_UNAVAILABLE', 'The keys of agents have not been read yet') }
  const why = disbelief(event, record.headers[signatureHeader], tools.keys, tools.requireSignatures)
  // the object is somebody's own, whoever named it here: it stays where it is
  if (why !== undefined) return { kind: 'reject', reason: 'SIGNATURE_INVALID', message: why }
  const wrong = wrongIdentity(event)
  // nothing is kept of it: a place for it would be named by these
  if (wrong !== undefined) return { kind: 'reject', reason: 'RECORD_MALFORMED', message: wrong }
  // a store asked for a bucket that is not ours says no for ever, which looks like a store that is away
  if (event.object.bucket !== tools.bucket)
    return { kind: 'reject', reason: 'RECORD_MALFORMED', message: `The object lies in ${JSON.stringify(event.object.bucket.slice(0, 80))}, media belong in ${tools.bucket}` }
  const bytes = await context.fetch(event.object)
  const outcome = await judge(event, bytes, record.timestamp, tools, context)
  return outcome.kind === 'reject' ? { ...outcome, puts: [quarantined(event, bytes, outcome.reason)] } : outcome
}

async function judge(event: MediaCaptured, bytes: Buffer, arrivedAt: EpochMs, tools: ValidateTools, context: StageContext): Promise<Outcome> {
  const format = event.kind === 'clip' ? (sniffClip(bytes) ?? sniffPicture(bytes)) : (sniffPicture(bytes) ?? sniffClip(bytes))
  const refusal = refuse(event, { bytes: bytes.length, sha256: sha256Hex(bytes), format })
  if (refusal) return { kind: 'reject', ...refusal }
  const arrival = { lane: event.lane, capturedAt: event.capturedAt, arrivedAt }
  try {
    const measured = event.kind === 'clip' ? await measureClip(bytes, tools, arrival, context.signal) : await measurePicture(bytes, format ?? '', tools.pixels, arrival)
    const validated: MediaValidated = { ...event, ...measured, arrivedAt, validatedAt: context.now(), stageVersion: version }
    return {
      kind: 'emit',
      outputs: [
        { topic: inLane(event.lane, topics.mediaValidated, topics.mediaValidatedBackfill), key: event.cameraId, id: event.mediaId, time: event.capturedAt, event: validated },
      ],
    }
  } catch (thrown) {
    if (thrown instanceof Fault && isReason(thrown.code)) return { kind: 'reject', reason: thrown.code, message: thrown.message }
    throw thrown
  }
}

/** Of one epoch: which seqs were judged, which of them refused, how often those had been sent again by then that were, and the last picture. */
interface Remembered {
  readonly seen: Ranges
  readonly refused: Ranges
  readonly redriven: Readonly<Record<string, number>>
  readonly picture?: Before
}

/** As it was kept at first: each refused seq by itself, with how often it had been sent again. */
type Stored = Remembered | { readonly seen: Ranges; readonly refused: Readonly<Record<string, number>>; readonly picture?: Before }

function rememberedOf(stored: Stored | undefined): Remembered {
  if (!stored) return { seen: [], refused: [], redriven: {} }
  if ('redriven' in stored) return stored
  const redriven = Object.fromEntries(Object.entries(stored.refused).filter(([, redrives]) => redrives > 0))
  return { ...stored, refused: Object.keys(stored.refused).reduce<Ranges>((ranges, seq) => addSeq(ranges, Number(seq)).seen, []), redriven }
}

/**
 * Announcements come at least once: one that was judged before leaves nothing behind a second time.
 * Only what was refused may come again, and only when somebody sent it again since.
 */
export function remember(outcome: Outcome, seq: number, redrives: number, before: Stored | undefined): { readonly outcome: Outcome; readonly remember: Remembered } {
  const remembered = rememberedOf(before)
  const { seen, refused, redriven, picture } = remembered
  // a stranger's word, or what is none, takes no number away from whose it is
  if (outcome.kind === 'reject' && (outcome.reason === 'SIGNATURE_INVALID' || outcome.reason === 'RECORD_MALFORMED')) return { outcome, remember: remembered }
  const added = addSeq(seen, seq)
  const isSentAgain = !added.isNew && redrives > (redriven[seq] ?? 0) && hasSeq(refused, seq)
  const kept = picture ? { picture } : {}
  if (!added.isNew && !isSentAgain) return { outcome: { kind: 'emit', outputs: [] }, remember: remembered }
  const { [seq]: _, ...others } = redriven
  const judged =
    outcome.kind === 'reject'
      ? { seen: added.seen, refused: addSeq(refused, seq).seen, redriven: redrives > 0 ? { ...others, [seq]: redrives } : others }
      : { seen: added.seen, refused: isSentAgain ? removeSeq(refused, seq) : refused, redriven: others }
  if (outcome.kind !== 'emit') return { outcome, remember: { ...judged, ...kept } }
  // marks that need the picture before
  let last = picture
  const outputs = outcome.outputs.map((output): Output => {
    if (output.topic.event !== 'MediaValidated') return output
    const event = output.event as MediaValidated
    if (event.fingerprint === '') return output
    const { marks, now } = compare(event, event.capturedAt, last)
    last = now
    return { ...output, event: { ...event, marks: [...event.marks, ...marks] } } as Output
  })
  return { outcome: { ...outcome, outputs }, remember: { ...judged, ...(last ? { picture: last } : {}) } }
}

export function validateStage(tools: ValidateTools): Stage<'MediaCaptured'> {
  return {
    name: 'validate',
    version,
    inputs: [topics.mediaCaptured],
    backlog: [topics.mediaBackfill],
    outputs: [topics.mediaValidated, topics.mediaValidatedBackfill],
    work: (incoming, context) => validate(incoming, tools, context),
    memory: {
      keyOf: ({ cameraId, epoch }) => `${cameraId} ${epoch}`,
      judge: ({ event, record }, outcome, remembered) => remember(outcome, event.seq, Number(record.headers['fl-redrives'] ?? 0), remembered as Stored | undefined),
    },
  }
}
