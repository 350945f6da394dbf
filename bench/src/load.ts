/** A closed loop of HTTP requests over raw keep-alive sockets: a client that takes little of the cores it shares with the server. */
import { connect, type Socket } from 'node:net'

/** The bytes of a POST. */
export function requestBytes(port: number, path: string, headers: Readonly<Record<string, string>>, body: Uint8Array): Buffer {
  const all = { host: `127.0.0.1:${port}`, 'content-length': String(body.length), ...headers }
  const head = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.concat([Buffer.from(`POST ${path} HTTP/1.1\r\n${head.join('')}\r\n`), body])
}

export interface Loaded {
  readonly perSecond: number
  readonly p50: number
  readonly p99: number
  readonly answered: number
}

/** One answer and what comes behind it; undefined when it is not all there. */
function nextAnswer(bytes: Buffer): { readonly status: number; readonly body: Buffer; readonly rest: Buffer } | undefined {
  const end = bytes.indexOf('\r\n\r\n')
  if (end < 0) return undefined
  const head = bytes.toString('latin1', 0, end)
  const length = Number(/\r\ncontent-length: (\d+)/i.exec(head)?.[1] ?? Number.NaN)
  if (Number.isNaN(length)) throw new Error(`an answer without a length: ${head}`)
  const whole = end + 4 + length
  return bytes.length < whole ? undefined : { status: Number(head.slice(9, 12)), body: bytes.subarray(end + 4, whole), rest: bytes.subarray(whole) }
}

/** Each connection sends its next request when the last one is answered. Throws on any answer but 200. */
export async function closedLoop(
  port: number,
  requests: readonly Buffer[],
  connections: number,
  seconds: number,
  onAnswer: (request: number, body: Buffer) => void = () => {},
): Promise<Loaded> {
  const latencies: number[] = []
  const began = performance.now()
  const until = began + seconds * 1000
  let next = 0
  const one = (): Promise<void> =>
    new Promise((resolve, reject) => {
      const socket: Socket = connect({ host: '127.0.0.1', port, noDelay: true })
      let waiting: Buffer = Buffer.alloc(0)
      let [asked, since] = [0, 0]
      const ask = (): void => {
        asked = next % requests.length
        next += 1
        since = performance.now()
        socket.write(requests[asked] as Buffer)
      }
      socket.on('connect', ask)
      socket.on('error', reject)
      socket.on('data', (piece) => {
        waiting = waiting.length === 0 ? piece : Buffer.concat([waiting, piece])
        const answer = nextAnswer(waiting)
        if (!answer) return
        waiting = answer.rest
        if (answer.status !== 200) {
          socket.destroy()
          reject(new Error(`${answer.status}: ${answer.body.toString('utf8')}`))
          return
        }
        const now = performance.now()
        latencies.push(now - since)
        onAnswer(asked, answer.body)
        if (now < until) ask()
        else {
          socket.destroy()
          resolve()
        }
      })
    })
  await Promise.all(Array.from({ length: connections }, one))
  const sorted = latencies.sort((a, b) => a - b)
  const at = (share: number): number => sorted[Math.floor(sorted.length * share)] ?? 0
  return { perSecond: latencies.length / ((performance.now() - began) / 1000), p50: at(0.5), p99: at(0.99), answered: latencies.length }
}
