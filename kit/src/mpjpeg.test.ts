import { expect, test } from 'vitest'
import { jpegsOf } from './mpjpeg.ts'

const part = (body: Buffer): Buffer => Buffer.concat([Buffer.from(`--ffmpeg\r\nContent-type: image/jpeg\r\nContent-length: ${body.length}\r\n\r\n`), body, Buffer.from('\r\n')])

test('pictures come out whole however the stream is cut', async () => {
  const bodies = [Buffer.from('one'), Buffer.alloc(0), Buffer.from('a longer \r\n\r\n one')]
  const stream = Buffer.concat(bodies.map(part))
  for (const size of [1, 2, 7, 64, stream.length]) {
    const chunks = (async function* () {
      for (let at = 0; at < stream.length; at += size) yield stream.subarray(at, at + size)
    })()
    const found: Buffer[] = []
    for await (const jpeg of jpegsOf(chunks)) found.push(jpeg)
    expect(found.map(String), `chunks of ${size}`).toEqual(bodies.map(String))
  }
})
