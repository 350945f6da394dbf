/**
 * HTTP of every process: `/healthz` (the process lives), `/readyz` (it can do its work, else why not), `/metrics`.
 * Processes with an API get the same three on a fastify server with problem documents (RFC 9457) for errors.
 */
import { createServer } from 'node:http'
import swagger from '@fastify/swagger'
import Fastify, { type FastifyInstance } from 'fastify'
import { Fault, type FaultCode, toError } from './fault.ts'
import type { Lifetime } from './lifetime.ts'
import type { Log } from './log.ts'
import type { Metrics } from './metrics.ts'
import type { Bytes } from './units.ts'

/** What keeps a process from being ready, by part; empty when it is. */
export type NotReady = Readonly<Record<string, string>>

export interface Health {
  readonly name: string
  readonly metrics: Metrics
  readonly notReady: () => NotReady | Promise<NotReady>
  /** Further routes of a process without an API. */
  readonly routes?: (method: string, path: string) => { readonly status: number; readonly body: string } | undefined
}

interface Answer {
  readonly status: number
  readonly type: string
  readonly body: string
}

async function healthAnswer(path: string, health: Health): Promise<Answer | undefined> {
  const json = (status: number, body: unknown): Answer => ({ status, type: 'application/json', body: JSON.stringify(body) })
  switch (path) {
    case '/healthz':
      return json(200, { status: 'ok', process: health.name, pid: process.pid })
    case '/readyz': {
      const waiting = await health.notReady()
      return Object.keys(waiting).length === 0 ? json(200, { status: 'ready', process: health.name }) : json(503, { status: 'not ready', process: health.name, waiting })
    }
    case '/metrics':
      return { status: 200, type: health.metrics.contentType, body: await health.metrics.metrics() }
    default:
      return undefined
  }
}

function portTaken(thrown: unknown, host: string, port: number): unknown {
  return (thrown as NodeJS.ErrnoException).code === 'EADDRINUSE'
    ? new Fault('PORT_TAKEN', `Port ${port} on ${host} is taken by another program (setting PORT)`, { host, port }, thrown)
    : thrown
}

/** The three health routes on a bare server, for processes without an API. Returns the port. */
export async function openHealth(health: Health, at: { readonly host: string; readonly port: number }, lifetime: Lifetime): Promise<number> {
  const server = createServer({ headersTimeout: 10_000, requestTimeout: 30_000 }, (request, response) => {
    const path = request.url?.split('?')[0] ?? ''
    const special = health.routes?.(request.method ?? 'GET', path)
    if (special) {
      response.writeHead(special.status, { 'content-type': 'text/plain' }).end(special.body)
      return
    }
    healthAnswer(path, health).then(
      (answer) => {
        const { status, type, body } = answer ?? { status: 404, type: 'text/plain', body: 'not found\n' }
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

const statusOf: Partial<Record<FaultCode, number>> = {
  UPLOAD_INVALID: 400,
  LABELS_INVALID: 422,
  REQUEST_INVALID: 400,
  ZONES_INVALID: 422,
  PICTURE_UNREADABLE: 422,
  CLIP_UNREADABLE: 422,
  PICTURE_TOO_LARGE: 413,
  UPLOAD_CONFLICT: 409,
  OBJECT_CONFLICT: 409,
  NOT_FOUND: 404,
  FRAME_UNKNOWN: 404,
  CAMERA_UNKNOWN: 404,
  TASK_UNKNOWN: 404,
  OBJECT_MISSING: 404,
  MODEL_UNAVAILABLE: 503,
  OBJECT_STORE_UNAVAILABLE: 503,
  KAFKA_UNAVAILABLE: 503,
  DATABASE_UNAVAILABLE: 503,
  REGISTRY_UNAVAILABLE: 503,
  TIMED_OUT: 504,
}

/** An error as a problem document (RFC 9457) with `code` and `hint`. */
export function problemOf(thrown: unknown): { readonly status: number; readonly document: Readonly<Record<string, unknown>> } {
  const document = (status: number, code: string, detail: string, hint: string, fields: object = {}) => ({
    status,
    document: { type: `urn:frameloop:fault:${code}`, title: code, status, detail, code, hint, ...fields },
  })
  if (thrown instanceof Fault) return document(statusOf[thrown.code] ?? 500, thrown.code, thrown.message, thrown.hint, thrown.fields)
  const known = thrown as { statusCode?: number; code?: string; message?: string }
  const status = known.statusCode ?? 500
  if (status < 500) {
    const fault = new Fault(status === 404 ? 'NOT_FOUND' : 'REQUEST_INVALID', known.message ?? 'The request is wrong')
    return document(status, known.code ?? fault.code, fault.message, fault.hint)
  }
  const internal = new Fault('INTERNAL', 'Something went wrong inside; the log has the details')
  return document(500, internal.code, internal.message, internal.hint)
}

export interface ApiOptions {
  readonly title: string
  readonly bodyLimit: Bytes
  readonly log: Log
}

/** A fastify server with health, OpenAPI at `/openapi.json` and problem documents. Add routes, then `listen`. */
export async function openApi(health: Health, options: ApiOptions): Promise<FastifyInstance> {
  const app = Fastify({ bodyLimit: options.bodyLimit, logger: false, requestTimeout: 30_000, forceCloseConnections: true, http: { headersTimeout: 10_000 } })
  await app.register(swagger, { openapi: { openapi: '3.1.0', info: { title: options.title, version: '0.1.0' } } })
  app.setErrorHandler((thrown, request, reply) => {
    const { status, document } = problemOf(thrown)
    if (status >= 500) options.log.error({ err: thrown, method: request.method, route: request.routeOptions.url }, 'request failed')
    return reply.code(status).type('application/problem+json').send(document)
  })
  app.setNotFoundHandler((request, reply) => {
    const { status, document } = problemOf(new Fault('NOT_FOUND', `There is no ${request.method} ${request.url.split('?')[0]} here`))
    return reply.code(status).type('application/problem+json').send(document)
  })
  for (const path of ['/healthz', '/readyz', '/metrics']) {
    app.get(path, { schema: { hide: true } }, async (_, reply) => {
      const answer = await healthAnswer(path, health)
      return reply
        .code(answer?.status ?? 404)
        .type(answer?.type ?? 'text/plain')
        .send(answer?.body)
    })
  }
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger())
  return app
}

/** Listens, and closes the server with the lifetime. Throws `PORT_TAKEN`. */
export async function listen(app: FastifyInstance, at: { readonly host: string; readonly port: number }, lifetime: Lifetime): Promise<void> {
  try {
    await app.listen(at)
  } catch (thrown) {
    throw portTaken(thrown, at.host, at.port)
  }
  lifetime.own('HTTP server', app, () => app.close())
}
