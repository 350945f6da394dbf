/**
 * One segment of the spool's log: records behind each other, each
 *   magic u16 | kind u8 | 0 u8 | head length u32 | body length u32 | crc32 u32 over kind, lengths, head and body | head (JSON) | body
 * all big-endian. A record whose CRC does not match at the end of the file is a torn write and is cut off.
 */

import { crc32 } from 'node:zlib'
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

export function encodeRecord(kind: number, head: unknown, body: Uint8Array): Buffer[] {
  const headBytes = Buffer.from(JSON.stringify(head), 'utf8')
  const header = Buffer.alloc(recordHeaderBytes)
  header.writeUInt16BE(magic, 0)
  header.writeUInt8(kind, 2)
  header.writeUInt32BE(headBytes.length, 4)
  header.writeUInt32BE(body.byteLength, 8)
  header.writeUInt32BE(crc32(body, crc32(headBytes, crc32(header.subarray(2, 12)))), 12)
  return [header, headBytes, Buffer.from(body.buffer, body.byteOffset, body.byteLength)]
}

export type Scan = { readonly records: readonly LogRecord[]; readonly intactUntil: Bytes; readonly broken: readonly { readonly at: Bytes; readonly end: Bytes }[] }

/** Whether a whole record begins here. */
function isIntact(file: Buffer, at: number): boolean {
  if (at + recordHeaderBytes > file.length || file.readUInt16BE(at) !== magic) return false
  const headAt = at + recordHeaderBytes
  const end = headAt + file.readUInt32BE(at + 4) + file.readUInt32BE(at + 8)
  return end <= file.length && crc32(file.subarray(headAt, end), crc32(file.subarray(at + 2, at + 12))) === file.readUInt32BE(at + 12)
}

const magicBytes = Buffer.from([magic >> 8, magic & 0xff])

function nextIntact(file: Buffer, from: number): number | undefined {
  for (let at = file.indexOf(magicBytes, from); at >= 0; at = file.indexOf(magicBytes, at + 1)) if (isIntact(file, at)) return at
  return undefined
}

/** Reads a whole segment. Bytes between intact records are reported as broken; behind the last one the rest is a torn tail. */
export function scanSegment(file: Buffer): Scan {
  const records: LogRecord[] = []
  const broken: { at: Bytes; end: Bytes }[] = []
  let at = 0
  while (at + recordHeaderBytes <= file.length) {
    const headLength = file.readUInt32BE(at + 4)
    const bodyLength = file.readUInt32BE(at + 8)
    const headAt = at + recordHeaderBytes
    let end = headAt + headLength + bodyLength
    if (isIntact(file, at)) {
      records.push({ kind: file.readUInt8(at + 2), head: JSON.parse(file.toString('utf8', headAt, headAt + headLength)) as unknown, bodyAt: headAt + headLength, bodyLength, end })
    } else {
      // its length may be what is broken: the next record is searched for, not computed
      const next = nextIntact(file, at + 1)
      if (next === undefined) break
      broken.push({ at, end: next })
      end = next
    }
    at = end
  }
  return { records, intactUntil: at, broken }
}
