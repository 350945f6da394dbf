/** Why a record may become a dead letter: every code that any stage uses, said once. `docs/reasons.md` is made from this. */
import type { FaultCode } from '@frameloop/kit/fault'

interface Reason {
  readonly stages: string
  readonly says: string
}

export const reasons = {
  RECORD_MALFORMED: { stages: 'all', says: 'the value is no Avro in Confluent wire format, or damaged' },
  SCHEMA_UNKNOWN: { stages: 'all', says: 'the value names a schema id that the registry does not know' },
  OBJECT_MISSING: { stages: 'all', says: 'the object named does not exist, asked five times' },
  OBJECT_CONFLICT: { stages: 'all', says: 'something else lies already where the output belongs' },
  OUTPUT_INVALID: { stages: 'all', says: 'a field cannot be carried on: no time, a number out of range' },
  PROCESS_KILLED: { stages: 'all', says: 'the record ended its process three times: out of memory, endless decoding' },
  REPLAYED: { stages: 'all', says: 'the record is a copy made by a replay and came on a live topic' },
  INTERNAL: { stages: 'all', says: 'the stage itself failed on the record' },
  SIGNATURE_INVALID: { stages: 'validate', says: 'it says to be of an agent whose key is known, and is not signed with it' },
  SIZE_MISMATCH: { stages: 'validate', says: 'the object has another length than was announced' },
  DIGEST_MISMATCH: { stages: 'validate', says: 'the object has another SHA-256 than was announced' },
  TYPE_MISMATCH: { stages: 'validate', says: 'the bytes are a picture or clip, but not of the kind or content type announced' },
  PICTURE_UNREADABLE: { stages: 'validate, features', says: 'no JPEG, PNG or WebP by content, or damaged, or cut off' },
  PICTURE_TOO_LARGE: { stages: 'validate, features', says: 'more than 50 million pixels by its header, before any decoding' },
  PICTURE_ANIMATED: { stages: 'validate, features', says: 'an animation by its header, where one picture belongs' },
  CLIP_UNREADABLE: { stages: 'validate, extract', says: 'no MP4, Matroska, AVI or MJPEG by content, or nothing in it can be decoded' },
  CLIP_TOO_LARGE: { stages: 'validate, extract', says: 'too many pixels, too long, or too many frames by its header, before any decoding' },
} as const satisfies Partial<Record<FaultCode, Reason>>

export type ReasonCode = keyof typeof reasons

export function isReason(code: string | undefined): code is ReasonCode {
  return code !== undefined && Object.hasOwn(reasons, code)
}
