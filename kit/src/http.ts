/**
 * HTTP of a process with an API: the three routes of `health.ts` on a fastify server, with problem documents (RFC 9457) for
 * errors, OpenAPI at `/openapi.json` and a page of it at `/docs`.
 */
import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import cors from '@fastify/cors'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import Fastify, { type FastifyInstance } from 'fastify'
import Type, { type Static } from 'typebox'
import { Fault, type FaultCode, rootMessage } from './fault.ts'
import { type Health, healthAnswer, healthPaths, portTaken } from './health.ts'
import type { Lifetime } from './lifetime.ts'
import type { Log } from './log.ts'
import { isDatabaseTransient } from './postgres.ts'
import { isForeign, isLoopback, isStranger } from './strangers.ts'
import type { Bytes, Ms } from './units.ts'

const statusOf: Partial<Record<FaultCode, number>> = {
  UPLOAD_INVALID: 400,
  LABELS_INVALID: 422,
  REQUEST_INVALID: 400,
  ZONES_INVALID: 422,
  PICTURE_UNREADABLE: 422,
  CLIP_UNREADABLE: 422,
  PICTURE_TOO_LARGE: 413,
  PICTURE_ANIMATED: 422,
  UPLOAD_CONFLICT: 409,
  OBJECT_CONFLICT: 409,
  NOT_FOUND: 404,
  FRAME_UNKNOWN: 404,
  CAMERA_UNKNOWN: 404,
  TASK_UNKNOWN: 404,
  MODEL_UNKNOWN: 404,
  OBJECT_MISSING: 404,
  MODEL_UNAVAILABLE: 503,
  OBJECT_STORE_UNAVAILABLE: 503,
  KAFKA_UNAVAILABLE: 503,
  DATABASE_UNAVAILABLE: 503,
  REGISTRY_UNAVAILABLE: 503,
  UNAUTHORIZED: 401,
  NOT_ALLOWED: 403,
  ORIGIN_NOT_ALLOWED: 403,
  RATE_LIMITED: 429,
  OVERLOADED: 429,
  THREAD_DIED: 503,
  DEADLINE_PASSED: 504,
  TIMED_OUT: 504,
}

export const Problem = Type.Object(
  { type: Type.String(), title: Type.String(), status: Type.Integer(), detail: Type.String(), code: Type.String(), hint: Type.String() },
  { description: 'a problem document (RFC 9457)' },
)
const problems = { description: 'refused', content: { 'application/problem+json': { schema: Problem } } }

/** An error as a problem document (RFC 9457) with `code` and `hint`. */
export function problemOf(thrown: unknown): { readonly status: number; readonly document: Static<typeof Problem> & Readonly<Record<string, unknown>> } {
  const document = (status: number, code: string, detail: string, hint: string, fields: object = {}) => ({
    status,
    document: { type: `urn:frameloop:fault:${code}`, title: code, status, detail, code, hint, ...fields },
  })
  if (thrown instanceof Fault) return document(statusOf[thrown.code] ?? 500, thrown.code, thrown.message, thrown.hint, thrown.fields)
  const known = thrown as { statusCode?: number; code?: string; message?: string }
  const status = known.statusCode ?? 500
  // first what the sender did: one who breaks off looks like a database that does
  if (status >= 500 && isDatabaseTransient(thrown)) return problemOf(new Fault('DATABASE_UNAVAILABLE', 'The database does not answer', {}, thrown))
  // said by the object store in its own words
  if (status >= 500 && (thrown as { $metadata?: unknown }).$metadata !== undefined)
    return problemOf(new Fault('OBJECT_STORE_UNAVAILABLE', `The object store refuses: ${rootMessage(thrown)}`, {}, thrown))
  if (status >= 500 && thrown instanceof Error && thrown.name.startsWith('KafkaJS')) return problemOf(new Fault('KAFKA_UNAVAILABLE', 'Kafka does not take it now', {}, thrown))
  if (status < 500) {
    const fault = new Fault(status === 404 ? 'NOT_FOUND' : 'REQUEST_INVALID', known.message ?? 'The request is wrong')
    return document(status, known.code ?? fault.code, fault.message, fault.hint)
  }
  const internal = new Fault('INTERNAL', 'Something went wrong inside; the log has the details')
  return document(500, internal.code, internal.message, internal.hint)
}

export interface ApiOptions {
  readonly title: string
  /** What it will listen on. */
  readonly host: string
  readonly bodyLimit: Bytes
  readonly log: Log
  /** Origins of pages elsewhere that may ask from a browser, like `https://shop.example.org`. */
  readonly allowedOrigins?: readonly string[]
  /** Names this answers to beside localhost and addresses. Looked at where somebody names some, and on loopback. */
  readonly allowedHosts?: readonly string[]
  /** How long a request may take to come, its body included, and how long it may come slower than `slowest`; half a minute and no bound of its own when absent. */
  readonly patience?: { readonly whole: Ms; readonly silence: Ms }
}

/** Bytes a second: whoever sends less is not sending, but holding a connection. */
const slowest: Bytes = 1_000

/** Ends a connection on which a body comes too slowly, while it comes and not while it is worked on. */
function watchBody(request: IncomingMessage, silence: Ms): void {
  const { socket } = request
  let before = socket.bytesRead
  const timer = setInterval(() => {
    const came = socket.bytesRead - before
    before += came
    if (came < (slowest * silence) / 1000) socket.destroy()
  }, silence)
  const stop = (): void => clearInterval(timer)
  request.once('end', stop).once('close', stop)
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Any page may have the answer of this route. */
    readonly isPublic?: boolean
    /** What the route takes and answers, for the description only (OpenAPI media types by content type, responses by status): what it takes it checks itself. */
    readonly described?: { readonly body?: Readonly<Record<string, object>>; readonly response?: object }
  }
}

/** Add routes, then `listen`. */
export async function openApi(health: Health, options: ApiOptions): Promise<FastifyInstance> {
  const app = Fastify({
    bodyLimit: options.bodyLimit,
    logger: false,
    requestTimeout: options.patience?.whole ?? 30_000,
    forceCloseConnections: true,
    http: { headersTimeout: 8_000, connectionsCheckingInterval: 250 },
  })
  const { allowedOrigins = [], allowedHosts = [] } = options
  // where no page elsewhere may ask, nothing needs to be said to browsers with each answer
  if (allowedOrigins.length > 0)
    await app.register(cors, {
      origin: [...allowedOrigins],
      methods: ['GET', 'HEAD', 'POST', 'PUT'],
      allowedHeaders: ['authorization', 'content-type', 'idempotency-key'],
      maxAge: 600,
    })
  const hasNames = isLoopback(options.host) || allowedHosts.length > 0
  /** Nearly all ask by the same name. */
  let known: { readonly host: string | undefined; readonly isStranger: boolean } | undefined
  const isStrange = (headers: IncomingHttpHeaders): boolean => {
    if (!known || known.host !== headers.host) known = { host: headers.host, isStranger: isStranger(headers, allowedOrigins, allowedHosts) }
    return known.isStranger
  }
  app.addHook('onRequest', async ({ headers, routeOptions, raw }) => {
    if (options.patience && (headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined)) watchBody(raw, options.patience.silence)
    if (hasNames && !healthPaths.includes(routeOptions.url ?? '') && isStrange(headers))
      throw new Fault('ORIGIN_NOT_ALLOWED', `This answers to localhost and to addresses, not to ${headers.host}`, { host: headers.host })
    if (!routeOptions.config.isPublic && isForeign(headers, allowedOrigins))
      throw new Fault('ORIGIN_NOT_ALLOWED', `Pages of ${headers.origin} may not ask here`, { origin: headers.origin })
  })
  await app.register(swagger, {
    transform: ({ schema, url, route }) => {
      const { body, response } = route.config?.described ?? {}
      return { url, schema: { ...schema, ...(body ? { body: { content: body } } : {}), response: { ...response, '4XX': problems, '5XX': problems } } }
    },
    openapi: {
      openapi: '3.1.0',
      info: { title: options.title, version: '0.1.0' },
      components: { securitySchemes: { key: { type: 'http', scheme: 'bearer', description: 'a key that `frameloop keys add` made, where one is asked for' } } },
      security: [{ key: [] }, {}],
    },
  })
  await app.register(swaggerUi, { routePrefix: '/docs', theme: { title: options.title } })
  app.setErrorHandler((thrown, request, reply) => {
    const { status, document } = problemOf(thrown)
    if (status >= 500) options.log.error({ err: thrown, method: request.method, route: request.routeOptions.url }, 'request failed')
    // the rest of a body that is too large is read and dropped: whoever still writes it would never read why
    if (status === 413) reply.header('connection', 'keep-alive')
    if (status === 429) reply.header('retry-after', '1')
    return reply.code(status).type('application/problem+json').send(document)
  })
  app.setNotFoundHandler((request, reply) => {
    const { status, document } = problemOf(new Fault('NOT_FOUND', `There is no ${request.method} ${request.url.split('?')[0]} here`))
    return reply.code(status).type('application/problem+json').send(document)
  })
  for (const path of healthPaths) {
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
