/**
 * One signed request about one object, sent by Node itself. Gets and puts of frames are most of what every process does, and
 * the SDK's own way takes five times the CPU for each (0.7 ms against 0.14 ms, `bench/results/agent.json` and its history);
 * all other calls stay with the SDK, and so do its credentials.
 */
import { Agent as HttpAgent, type IncomingMessage, type OutgoingHttpHeaders, request as requestHttp } from 'node:http'
import { Agent as HttpsAgent, request as requestHttps } from 'node:https'
import aws4, { type Credentials } from 'aws4'
import { Fault } from './fault.ts'
import type { Bytes, EpochMs, Ms } from './units.ts'

export interface ObjectAnswer {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  readonly body: Buffer
}

export interface ObjectRequest {
  readonly method: 'GET' | 'PUT'
  readonly bucket: string
  readonly key: string
  readonly headers?: OutgoingHttpHeaders
  readonly body?: Uint8Array
  /** Of the answer: a longer one is not read. */
  readonly most?: Bytes
}

/** The store's own no, as the SDK words it. */
export class StoreRefusal extends Error {
  readonly $metadata: { readonly httpStatusCode: number }

  constructor(status: number, body: string) {
    super(/<Message>([^<]*)</.exec(body)?.[1] ?? `the object store answered with ${status}`)
    this.name = /<Code>([^<]*)</.exec(body)?.[1] ?? `HTTP ${status}`
    this.$metadata = { httpStatusCode: status }
  }
}

export interface ObjectRequestSettings {
  /** Empty: AWS itself. */
  readonly endpoint: string
  readonly region: string
  readonly credentials: () => Promise<Credentials>
  /** A connection on which nothing comes for so long, while an answer is due, is given up. */
  readonly silence: Ms
  /** Bytes a second that a body may travel at: it is given that time besides, and once more when it was not enough. To us the kernel has sent it all at once. */
  readonly slowest?: Bytes
}

/** What a kernel takes at once over a link like that; the rest shows that it travels by being taken. */
const mostAhead: Bytes = 1_000_000
const mostPatience = 2

const connectPatience: Ms = 3_000

/** As RFC 3986 has it: `encodeURIComponent` leaves five characters more. */
const encodeKey = (key: string): string =>
  encodeURIComponent(key)
    .replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`)
    .replaceAll('%2F', '/')

/** `20261125T224500Z`. */
const timestamp = (at: EpochMs): string => new Date(at).toISOString().replace(/[-:]|\.\d+/g, '')

export class ObjectRequests {
  readonly #settings: ObjectRequestSettings
  readonly #endpoint: URL | undefined
  readonly #http = new HttpAgent({ keepAlive: true, maxSockets: 64 })
  readonly #https = new HttpsAgent({ keepAlive: true, maxSockets: 64 })
  /** The store's clock against ours: a box on a pole may be days off, and signatures hold for a quarter of an hour. */
  #skew: Ms = 0
  /** Times what a request with a body is usually given. */
  #patience = 1

  constructor(settings: ObjectRequestSettings) {
    this.#settings = settings
    this.#endpoint = settings.endpoint ? new URL(settings.endpoint) : undefined
  }

  /** Asked again once when nothing comes, or 5xx. Throws `StoreRefusal` for what is not 2xx, `SIZE_MISMATCH` for more than `most`, and errors of the network. */
  async send(request: ObjectRequest, signal?: AbortSignal): Promise<ObjectAnswer> {
    for (let attempt = 1; ; attempt += 1) {
      try {
        const answer = await this.#sendOnce(request, signal)
        if (answer.status < 300) return answer
        const refusal = new StoreRefusal(answer.status, answer.body.toString('utf8', 0, 2_000))
        if (!this.#learnsTime(refusal, answer) && answer.status < 500) throw refusal
        if (attempt === 2) throw refusal
      } catch (thrown) {
        if (attempt === 2 || signal?.aborted || thrown instanceof StoreRefusal || thrown instanceof Fault) throw thrown
      }
    }
  }

  /** Whether it was refused for the time of its signature, and the store says what time it is. */
  #learnsTime({ name }: StoreRefusal, { headers }: ObjectAnswer): boolean {
    if (name !== 'RequestTimeTooSkewed' || !headers.date) return false
    this.#skew = Date.parse(headers.date) - Date.now()
    return true
  }

  async #sendOnce({ method, bucket, key, headers, body, most = Number.POSITIVE_INFINITY }: ObjectRequest, signal: AbortSignal | undefined): Promise<ObjectAnswer> {
    const { endpoint, region, credentials, silence, slowest } = this.#settings
    const url = this.#endpoint ?? new URL(`https://${bucket}.s3.${region}.amazonaws.com`)
    const path = `${url.pathname.replace(/\/$/, '')}${endpoint ? `/${bucket}` : ''}/${encodeKey(key)}`
    const isTls = url.protocol === 'https:'
    const signed = aws4.sign(
      {
        ...{ service: 's3', region, method, path, hostname: url.hostname },
        // the content is held against the checksum, which is signed: signing the content too would read it twice, here and there
        headers: {
          ...headers,
          host: url.host,
          'x-amz-date': timestamp(Date.now() + this.#skew),
          'x-amz-content-sha256': 'UNSIGNED-PAYLOAD',
          ...(body ? { 'content-length': body.byteLength } : {}),
        },
      },
      await credentials(),
    )
    const patience = this.#patience
    const timeout = body && slowest ? patience * (silence + (Math.min(mostAhead, body.byteLength) * 1000) / slowest) : silence
    const since = performance.now()
    return new Promise((resolve, reject) => {
      // an address of version 6 stands in brackets there, and in none here
      const host = url.hostname.replace(/^\[|\]$/g, '')
      const options = { host, port: url.port, method, path, headers: signed.headers ?? {}, timeout, ...(signal ? { signal } : {}) }
      const asked = isTls ? requestHttps({ ...options, agent: this.#https }) : requestHttp({ ...options, agent: this.#http })
      let connecting: NodeJS.Timeout | undefined
      // before it has a socket it waits for others that have one
      asked.once('socket', (socket) => {
        if (!socket.connecting) return
        connecting = setTimeout(() => asked.destroy(new Error(`no connection after ${connectPatience} ms`)), connectPatience)
        socket.once(isTls ? 'secureConnect' : 'connect', () => clearTimeout(connecting))
      })
      asked.once('timeout', () => {
        // those that were sent beside it say the same
        if (body && this.#patience === patience) this.#patience = Math.min(mostPatience, 2 * patience)
        asked.destroy(new Error(`nothing came for ${Math.round(timeout)} ms`))
      })
      asked.once('error', reject)
      asked.once('close', () => clearTimeout(connecting))
      asked.once('response', (response) => {
        if (body && performance.now() - since < silence / 2) this.#patience = Math.max(1, this.#patience / 2)
        const length = Number(response.headers['content-length'] ?? 0)
        if (length > most) {
          asked.destroy()
          reject(new Fault('SIZE_MISMATCH', `${bucket}/${key} has ${length} bytes, where at most ${most} were expected`, { bucket, key }))
          return
        }
        const parts: Buffer[] = []
        response.on('data', (part: Buffer) => parts.push(part))
        response.once('error', reject)
        response.once('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body: parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts) }))
      })
      asked.end(body)
    })
  }

  close(): void {
    this.#http.destroy()
    this.#https.destroy()
  }
}
