/**
 * What validate asks of every medium. A rule is a pure function: a check says why a medium is refused, a mark says what
 * is odd about one that goes on all the same. Adding a rule is adding a line; `docs/reasons.md` is made from these tables.
 */
import type { Bytes, EpochMs } from '@frameloop/kit/units'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { isName, isUuid } from '@frameloop/schemas/ids'
import type { ReasonCode } from '../chain/reasons.ts'

/** What the bytes are, before anything is decoded. */
export interface Content {
  readonly bytes: Bytes
  readonly sha256: string
  /** True format by content; undefined when it is none that we know. */
  readonly format: string | undefined
}

export interface Refusal {
  readonly reason: ReasonCode
  readonly message: string
}

const pictures: readonly string[] = ['jpeg', 'png', 'webp']
const contentTypes: Readonly<Record<string, readonly string[]>> = {
  jpeg: ['image/jpeg', 'image/jpg', 'video/x-motion-jpeg'],
  png: ['image/png', 'image/apng'],
  webp: ['image/webp'],
  mp4: ['video/mp4', 'video/quicktime'],
  mkv: ['video/x-matroska', 'video/matroska', 'video/webm'],
  avi: ['video/x-msvideo', 'video/avi', 'video/vnd.avi'],
  mjpeg: ['video/x-motion-jpeg', 'video/mjpeg', 'image/jpeg'],
}
/** Types that promise nothing. */
const vague: readonly string[] = ['', 'application/octet-stream', 'binary/octet-stream']

type Check = (event: MediaCaptured, content: Content) => string | undefined

/** In order; the first that speaks decides. Unknown formats are left to decoding, which says what it expected. */
export const checks: readonly (readonly [ReasonCode, Check])[] = [
  ['SIZE_MISMATCH', ({ object }, { bytes }) => (bytes === object.bytes ? undefined : `The object holds ${bytes} bytes, ${object.bytes} were announced`)],
  ['DIGEST_MISMATCH', ({ object }, { sha256 }) => (sha256 === object.sha256 ? undefined : `The object hashes to ${sha256}, ${object.sha256} was announced`)],
  [
    'TYPE_MISMATCH',
    ({ kind }, { format }) => {
      if (format === undefined || pictures.includes(format) === (kind === 'image')) return undefined
      return `The bytes are ${format}, ${kind === 'image' ? 'an image' : 'a clip'} was announced`
    },
  ],
  [
    'TYPE_MISMATCH',
    ({ object }, { format }) => {
      const announced = object.contentType.split(';')[0]?.trim().toLowerCase() ?? ''
      if (format === undefined || vague.includes(announced) || contentTypes[format]?.includes(announced)) return undefined
      return `The bytes are ${format}, ${announced} was announced`
    },
  ],
]

export function refuse(event: MediaCaptured, content: Content): Refusal | undefined {
  for (const [reason, check] of checks) {
    const message = check(event, content)
    if (message !== undefined) return { reason, message }
  }
  return undefined
}

/** What was measured of one picture; the figures are those of a decode shrunk to at least 160x120. */
export interface Look {
  /** Mean luma, 0..255. */
  readonly brightness: number
  /** Variance of the Laplacian of luma. */
  readonly sharpness: number
  /** 64-bit difference hash, 16 hex digits. */
  readonly phash: string
  /** Of the pixels: equal only when every pixel is. */
  readonly fingerprint: string
}

export interface Arrival {
  readonly lane: string
  readonly capturedAt: EpochMs
  /** By the clock of the broker. */
  readonly arrivedAt: EpochMs
}

/** The last picture of the same camera, in event time, and since when it has not changed by a single pixel. */
export interface Before {
  readonly capturedAt: EpochMs
  readonly phash: string
  readonly fingerprint: string
  readonly sameSince: EpochMs
  readonly sameCount: number
}

const darkBelow = 16
const blownOutFrom = 240
const blurredBelow = 15
const clockAheadBy = 5_000
const clockBehindBy = 600_000
const duplicateBits = 2
const frozenFor = 10_000
const frozenFrames = 5

/** Of a picture alone. */
export const lookMarks = {
  dark: { says: `mean luma below ${darkBelow} of 255`, rule: ({ brightness }: Look) => brightness < darkBelow },
  'blown-out': { says: `mean luma of ${blownOutFrom} of 255 or more`, rule: ({ brightness }: Look) => brightness >= blownOutFrom },
  blurred: {
    says: `variance of the Laplacian below ${blurredBelow}, in neither darkness nor glare`,
    rule: ({ brightness, sharpness }: Look) => sharpness < blurredBelow && brightness >= darkBelow && brightness < blownOutFrom,
  },
} as const

/** Of the moment it came; both times are kept. */
export const clockMarks = {
  'clock-ahead': {
    says: `captured more than ${clockAheadBy / 1000} s after it arrived: the source's clock runs ahead`,
    rule: ({ capturedAt, arrivedAt }: Arrival) => capturedAt > arrivedAt + clockAheadBy,
  },
  'clock-behind': {
    says: `sent as live and captured more than ${clockBehindBy / 60_000} min before it arrived: the source's clock runs behind`,
    rule: ({ lane, capturedAt, arrivedAt }: Arrival) => lane === 'live' && capturedAt < arrivedAt - clockBehindBy,
  },
} as const

/** Of a picture and the one before it. */
export const sequenceMarks = {
  'near-duplicate': {
    says: `its perceptual hash differs from the last picture's in at most ${duplicateBits} of 64 bits`,
    rule: (look: Look, before: Before) => differingBits(look.phash, before.phash) <= duplicateBits,
  },
  frozen: {
    says: `not one pixel has changed in ${frozenFrames} pictures over ${frozenFor / 1000} s or more`,
    rule: (_: Look, before: Before) => before.sameCount >= frozenFrames && before.capturedAt - before.sameSince >= frozenFor,
  },
} as const

/** Of a clip. */
export const clipMarks = {
  truncated: { says: 'ends before the duration its header states; what it holds is extracted' },
} as const

export function marksOf(look: Look | undefined, arrival: Arrival): string[] {
  const named = <Fact>(table: Readonly<Record<string, { readonly rule: (fact: Fact) => boolean }>>, fact: Fact): string[] =>
    Object.entries(table).flatMap(([mark, { rule }]) => (rule(fact) ? [mark] : []))
  return [...(look ? named(lookMarks, look) : []), ...named(clockMarks, arrival)]
}

/** Marks that need the picture before, and what to remember of this one. A picture older than the last is neither judged nor remembered. */
export function compare(look: Look, capturedAt: EpochMs, before: Before | undefined): { readonly marks: readonly string[]; readonly now: Before } {
  const { phash, fingerprint } = look
  if (!before) return { marks: [], now: { capturedAt, phash, fingerprint, sameSince: capturedAt, sameCount: 1 } }
  if (capturedAt < before.capturedAt) return { marks: [], now: before }
  const isSame = fingerprint === before.fingerprint
  const now: Before = { capturedAt, phash, fingerprint, sameSince: isSame ? before.sameSince : capturedAt, sameCount: isSame ? before.sameCount + 1 : 1 }
  const marks: string[] = []
  if (sequenceMarks['near-duplicate'].rule(look, before)) marks.push('near-duplicate')
  if (sequenceMarks.frozen.rule(look, now)) marks.push('frozen')
  return { marks, now }
}

/** Bits in which two 64-bit hashes of 16 hex digits differ. */
export function differingBits(one: string, other: string): number {
  let bits = BigInt(`0x${one || '0'}`) ^ BigInt(`0x${other || '0'}`)
  let count = 0
  while (bits > 0n) {
    bits &= bits - 1n
    count += 1
  }
  return count
}

/** What of its identity is none, or undefined: names and ids become keys of objects and headers of requests. */
export function wrongIdentity({ siteId, cameraId, agentId, mediaId, epoch }: Pick<MediaCaptured, 'siteId' | 'cameraId' | 'agentId' | 'mediaId' | 'epoch'>): string | undefined {
  for (const [what, name] of Object.entries({ site: siteId, camera: cameraId, agent: agentId }))
    if (!isName(name)) return `${JSON.stringify(name.slice(0, 80))} is no name of a ${what}`
  // it names what validate remembers
  if (epoch.length > 200) return `An epoch of ${epoch.length} characters is none`
  return isUuid(mediaId) ? undefined : `${JSON.stringify(mediaId.slice(0, 80))} is no id of a medium`
}
