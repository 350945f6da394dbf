/**
 * One segment of the spool's log: records behind each other, each
 *   magic u16 | kind u8 | guard u8 | head length u32 | body length u32 | crc32 u32 | head (JSON) | body
 * all big-endian. The CRC is over kind, guard, lengths and head, and over the body too where guard is 0; where it is 1 the
 * head has the sha256 of the body, which was computed when the frame was captured: once is enough. A record that is not
 * whole at the end of the file is a torn write and is cut off.
 */

import { crc32 } from 'node:zlib'
import { sha256Hex } from '@frameloop/kit/digest'
import type { Bytes } from '@frameloop/kit/units'

const magic = 0xf1a7
export const recordHeaderBytes = 16

export interface LogRecord {
  readonly kind: number
  readonly head: unknown
  /** Where the body lies in the file. */
  readonly bodyAt: Bytes
  readonly bodyLength: Bytes
  /** Where the next record begins. */
  readonly end: Bytes
}

/** `digest`: the head has the sha256 of the body. */
export function encodeRecord(kind: number, head: unknown, body: Uint8Array, digest = false): Buffer[] {
  const text = JSON.stringify(head)
  const length = Buffer.byteLength(text)
  const record = Buffer.allocUnsafe(recordHeaderBytes + length)
  record.writeUInt16BE(magic, 0)
  record.writeUInt8(kind, 2)
  record.writeUInt8(digest ? 1 : 0, 3)
  record.writeUInt32BE(length, 4)
  record.writeUInt32BE(body.byteLength, 8)
  record.write(text, recordHeaderBytes)
  const crc = crc32(record.subarray(recordHeaderBytes), crc32(record.subarray(2, 12)))
  record.writeUInt32BE(digest ? crc : crc32(body, crc), 12)
  return [record, Buffer.from(body.buffer, body.byteOffset, body.byteLength)]
}

export type Scan = { readonly records: readonly LogRecord[]; readonly intactUntil: Bytes; readonly broken: readonly { readonly at: Bytes; readonly end: Bytes }[] }

/** Whether a record begins here and is whole, but for a body that its head has the digest of. */
function isIntact(file: Buffer, at: number): boolean {
  if (at + recordHeaderBytes > file.length || file.readUInt16BE(at) !== magic) return false
  const headAt = at + recordHeaderBytes
  const bodyAt = headAt + file.readUInt32BE(at + 4)
  const end = bodyAt + file.readUInt32BE(at + 8)
  if (end > file.length) return false
  const guarded = file.subarray(headAt, file[at + 3] === 1 ? bodyAt : end)
  return crc32(guarded, crc32(file.subarray(at + 2, at + 12))) === file.readUInt32BE(at + 12)
}

const magicBytes = Buffer.from([magic >> 8, magic & 0xff])

function nextIntact(file: Buffer, from: number): number | undefined {
  for (let at = file.indexOf(magicBytes, from); at >= 0; at = file.indexOf(magicBytes, at + 1)) if (isIntact(file, at)) return at
  return undefined
}

/**
 * Reads a whole segment. Bytes between intact records are reported as broken; behind the last one the rest is a torn tail.
 * `digestOf`: the sha256 in a head, where bodies are to be held against it as well.
 */
export function scanSegment(file: Buffer, digestOf?: (kind: number, head: unknown) => string): Scan {
  const records: LogRecord[] = []
  const broken: { at: Bytes; end: Bytes }[] = []
  let at = 0
  while (at + recordHeaderBytes <= file.length) {
    const record = isIntact(file, at) ? readRecord(file, at) : undefined
    const { bodyAt = 0, end = 0 } = record ?? {}
    const hasOwnBytes = !record || !digestOf || file[at + 3] !== 1 || sha256Hex(file.subarray(bodyAt, end)) === digestOf(record.kind, record.head)
    if (record && hasOwnBytes) {
      records.push(record)
      at = end
      continue
    }
    // its length may be what is broken: the next record is searched for, not computed
    const next = nextIntact(file, at + 1)
    if (next === undefined) break
    broken.push({ at, end: next })
    at = next
  }
  return { records, intactUntil: at, broken }
}

function readRecord(file: Buffer, at: Bytes): LogRecord {
  const headAt = at + recordHeaderBytes
  const bodyAt = headAt + file.readUInt32BE(at + 4)
  const bodyLength = file.readUInt32BE(at + 8)
  return { kind: file.readUInt8(at + 2), head: JSON.parse(file.toString('utf8', headAt, bodyAt)) as unknown, bodyAt, bodyLength, end: bodyAt + bodyLength }
}
