/**
 * ffmpeg's `-f mpjpeg` output → whole JPEGs. Each part states its Content-length, so no marker is searched for:
 *   --ffmpeg CRLF Content-type: image/jpeg CRLF Content-length: 1234 CRLF CRLF <1234 bytes> CRLF
 */
import { Fault } from './fault.ts'

/** A part larger than this is no picture of a camera. */
const largestPart = 64 * 1024 * 1024

export async function* jpegsOf(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let waiting: Buffer = Buffer.alloc(0)
  for await (const chunk of chunks) {
    waiting = waiting.length === 0 ? chunk : Buffer.concat([waiting, chunk])
    for (;;) {
      const headEnd = waiting.indexOf('\r\n\r\n')
      if (headEnd < 0) break
      const length = /content-length:\s*(\d+)/i.exec(waiting.toString('latin1', 0, headEnd))?.[1]
      if (length === undefined || Number(length) > largestPart) throw new Fault('SOURCE_UNREADABLE', 'The capture program sent a part without a usable length')
      const start = headEnd + 4
      const end = start + Number(length)
      if (waiting.length < end) break
      yield Buffer.from(waiting.subarray(start, end))
      waiting = waiting.subarray(end)
    }
  }
}
