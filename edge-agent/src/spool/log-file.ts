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

/**
 * Reads a whole segment. A bad record in the middle is reported and skipped when the next one can be found behind its
 * stated length; from the first bad record without a successor on, the rest is a torn tail.
 */
export function scanSegment(file: Buffer): Scan {
  const records: LogRecord[] = []
  const broken: { at: Bytes; end: Bytes }[] = []
  let at = 0
  while (at + recordHeaderBytes <= file.length) {
    const headLength = file.readUInt32BE(at + 4)
    const bodyLength = file.readUInt32BE(at + 8)
    const end = at + recordHeaderBytes + headLength + bodyLength
    if (file.readUInt16BE(at) !== magic || end > file.length) break
    const headAt = at + recordHeaderBytes
    const sum = crc32(file.subarray(headAt, end), crc32(file.subarray(at + 2, at + 12)))
    if (sum === file.readUInt32BE(at + 12)) {
      records.push({ kind: file.readUInt8(at + 2), head: JSON.parse(file.toString('utf8', headAt, headAt + headLength)) as unknown, bodyAt: headAt + headLength, bodyLength, end })
    } else {
      const followed = end + recordHeaderBytes <= file.length && file.readUInt16BE(end) === magic
      if (!followed) break
      broken.push({ at, end })
    }
    at = end
  }
  return { records, intactUntil: at, broken }
}
