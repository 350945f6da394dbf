/**
 * A camera over HTTP, read natively: a stream of JPEGs (`multipart/x-mixed-replace`, "MJPEG") or an address that gives one
 * picture per question. Which one it is, the camera says. (ffmpeg's own MJPEG reader assumes 25 pictures a second.)
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { rootMessage } from '@frameloop/kit/fault'
import { jpegSize } from '@frameloop/kit/jpeg-header'
import { redact } from '@frameloop/kit/log'
import { type CameraSettings, ratesOf } from '../config.ts'
import { fetchWithLogin } from './http-login.ts'
import { type Captured, loginOf, patienceOf, refusalOf, type Source, SourceFailure } from './source.ts'

const largestPicture = 64 * 1024 * 1024
const startOfImage = Buffer.from([0xff, 0xd8, 0xff])

/** Parts of a multipart stream. With a length in its head a part is cut there, else at the next boundary. */
export async function* partsOf(chunks: AsyncIterable<Uint8Array>, boundary: string): AsyncGenerator<Buffer> {
  const mark = Buffer.from(`--${boundary.replace(/^--/, '')}`)
  let waiting: Buffer = Buffer.alloc(0)
  for await (const chunk of chunks) {
    waiting = waiting.length === 0 ? Buffer.from(chunk) : Buffer.concat([waiting, chunk])
    for (;;) {
      const at = waiting.indexOf(mark)
      const headEnd = at < 0 ? -1 : waiting.indexOf('\r\n\r\n', at)
      if (headEnd < 0) break
      const start = headEnd + 4
      const length = /content-length:\s*(\d+)/i.exec(waiting.toString('latin1', at, headEnd))?.[1]
      let end = length === undefined ? waiting.indexOf(mark, start) : start + Number(length)
      if (length === undefined && end >= 0 && waiting.toString('latin1', end - 2, end) === '\r\n') end -= 2
      if (end < 0 || waiting.length < end) break
      yield waiting.subarray(start, end)
      waiting = waiting.subarray(end)
    }
    if (waiting.length > largestPicture) throw new SourceFailure('wrong', `the camera sent ${waiting.length} bytes without the end of a picture`)
  }
}

export function httpSource(settings: CameraSettings): Source {
  const url = new URL(settings.address)
  const login = loginOf(settings)
  url.username = ''
  url.password = ''
  // what stands behind the path may be a login
  const sourceName = redact(`${url.origin}${url.pathname}`)
  const interval = 1000 / ratesOf(settings).asked
  const ask = async (signal: AbortSignal): Promise<Response> => {
    const response = await fetchWithLogin(url, login, signal).catch((thrown: unknown) => {
      throw new SourceFailure('backing off', /ECONNREFUSED/.test(rootMessage(thrown)) ? 'nothing answers at the camera address' : rootMessage(thrown), thrown)
    })
    if (response.ok) return response
    await response.body?.cancel()
    throw refusalOf(response.status, 'picture') ?? new SourceFailure('backing off', `the camera answered with status ${response.status}`)
  }
  const captured = (bytes: Buffer): Captured => {
    if (!bytes.subarray(0, 3).equals(startOfImage)) throw new SourceFailure('wrong', 'the camera sends something that is no JPEG')
    return { bytes, extension: 'jpg', kind: 'image', capturedAt: Date.now(), ...jpegSize(bytes), sourceName, newPass: false }
  }
  return {
    kind: 'http',
    patience: patienceOf(settings),
    finishes: false,
    async *pictures(_, signal) {
      let response = await ask(signal)
      const type = response.headers.get('content-type') ?? ''
      const boundary = /multipart\/x-mixed-replace.*boundary="?([^";\s]+)/i.exec(type)?.[1]
      if (boundary !== undefined) {
        if (!response.body) throw new SourceFailure('wrong', 'the camera sent no content')
        let due = 0
        for await (const part of partsOf(response.body, boundary)) {
          // more often than was asked for: the ones between are let go
          const now = performance.now()
          if (now < due - interval / 4) continue
          due = Math.max(due + interval, now)
          yield captured(Buffer.from(part))
        }
        throw new SourceFailure('backing off', 'the stream ended')
      }
      if (!/^image\/jpe?g/i.test(type)) throw new SourceFailure('wrong', `the camera answers with ${type || 'no content type'}, which is neither a JPEG nor a stream of them`)
      for (let due = performance.now(); ; ) {
        yield captured(Buffer.from(await response.arrayBuffer()))
        // how long an answer takes does not add to it
        due = Math.max(due + interval, performance.now())
        await sleep(Math.max(0, due - performance.now()), undefined, { signal })
        response = await ask(signal)
      }
    },
  }
}
