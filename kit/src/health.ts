/** HTTP of a process without an API: `/healthz` (it lives), `/readyz` (it can do its work, else why not), `/metrics`. */
import { createServer } from 'node:http'
import { Fault, toError } from './fault.ts'
import type { Lifetime } from './lifetime.ts'
import type { Metrics } from './metrics.ts'
import { isForeign, isLoopback, isStranger } from './strangers.ts'

/** What keeps a process from being ready, by part; empty when it is. */
export type NotReady = Readonly<Record<string, string>>

export interface Health {
  readonly name: string
  readonly metrics: Metrics
  readonly notReady: () => NotReady | Promise<NotReady>
  /** What it does without for now, by part: it goes on with what it has, and `/readyz` says so. */
  readonly degraded?: () => NotReady | Promise<NotReady>
  /** Further routes of a process without an API. */
  readonly routes?: (method: string, path: string) => Answer | Promise<Answer> | undefined
}

export interface Answer {
  readonly status: number
  readonly type: string
  readonly body: string | Buffer
}

export const textAnswer = (status: number, sentence: string): Answer => ({ status, type: 'text/plain', body: `${sentence}\n` })
export const jsonAnswer = (status: number, body: unknown): Answer => ({ status, type: 'application/json', body: JSON.stringify(body) })

export const healthPaths = ['/healthz', '/readyz', '/metrics']

export async function healthAnswer(path: string, health: Health): Promise<Answer | undefined> {
  switch (path) {
    case '/healthz':
      return jsonAnswer(200, { status: 'ok', process: health.name, pid: process.pid })
    case '/readyz': {
      const waiting = await health.notReady()
      if (Object.keys(waiting).length > 0) return jsonAnswer(503, { status: 'not ready', process: health.name, waiting })
      const degraded = (await health.degraded?.()) ?? {}
      return jsonAnswer(200, { status: 'ready', process: health.name, ...(Object.keys(degraded).length > 0 ? { degraded } : {}) })
    }
    case '/metrics':
      return { status: 200, type: health.metrics.contentType, body: await health.metrics.metrics() }
    default:
      return undefined
  }
}

export function portTaken(thrown: unknown, host: string, port: number): unknown {
  return (thrown as NodeJS.ErrnoException).code === 'EADDRINUSE'
    ? new Fault('PORT_TAKEN', `Port ${port} on ${host} is taken by another program (setting PORT)`, { host, port }, thrown)
    : thrown
}

/** The three health routes on a bare server, for processes without an API. Returns the port. */
export async function openHealth(health: Health, at: { readonly host: string; readonly port: number }, lifetime: Lifetime): Promise<number> {
  const server = createServer({ headersTimeout: 10_000, requestTimeout: 30_000 }, (request, response) => {
    const path = request.url?.split('?')[0] ?? ''
    const { headers } = request
    if (!healthPaths.includes(path) && (isForeign(headers, []) || (isLoopback(at.host) && isStranger(headers, [])))) {
      response.writeHead(403, { 'content-type': 'text/plain' }).end('pages of others may not ask here\n')
      return
    }
    const special = health.routes?.(request.method ?? 'GET', path)
    Promise.resolve(special ?? healthAnswer(path, health)).then(
      (answer) => {
        const { status, type, body } = answer ?? textAnswer(404, 'not found')
        response.writeHead(status, { 'content-type': type }).end(body)
      },
      (thrown: unknown) => response.writeHead(500, { 'content-type': 'text/plain' }).end(`${toError(thrown).message}\n`),
    )
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(portTaken(error, at.host, at.port)))
    server.listen(at.port, at.host, resolve)
  })
  lifetime.own('health server', server, () => {
    server.closeAllConnections()
    return new Promise((resolve) => server.close(resolve))
  })
  const address = server.address()
  return typeof address === 'object' && address ? address.port : at.port
}
