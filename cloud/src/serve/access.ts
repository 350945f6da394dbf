/**
 * Who may ask what. A key is `fl_ID_SECRET`; only the SHA-256 of its secret is stored, which is enough for 256 random bits.
 *   header   Authorization: Bearer fl_…
 *   browser  POST /v1/tickets with the key, then ?ticket=… on a WebSocket: it holds for half a minute and once
 * K1  Keys are read again every two seconds; while PostgreSQL is away the last known ones hold.
 * K2  A WebSocket lives as long as its key: once that is revoked, it is closed (1008).
 * K3  Decisions are pure functions of a scope; what a key may not see it is not sent either.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault } from '@frameloop/kit/fault'
import type { Log } from '@frameloop/kit/log'
import type { Pool } from '@frameloop/kit/postgres'
import type { EpochMs, Ms } from '@frameloop/kit/units'
import type { FastifyInstance } from 'fastify'
import Type from 'typebox'
import type { WebSocket } from 'ws'
import { answered } from './answers.ts'

export const verbs = ['predict', 'feeds', 'models'] as const
export type Verb = (typeof verbs)[number]

/** An empty list means all. */
export interface Scope {
  readonly verbs: readonly Verb[]
  readonly cameras: readonly string[]
  readonly tasks: readonly string[]
}

export const everything: Scope = { verbs: [], cameras: [], tasks: [] }

export interface Caller {
  readonly keyId: string
  readonly scope: Scope
  /** Takes `count` of what the key may ask a second. Throws `RATE_LIMITED`. */
  take(count?: number): void
}

const has = (list: readonly string[], value: string | undefined): boolean => list.length === 0 || (value !== undefined && list.includes(value))

/** Throws `NOT_ALLOWED` unless the scope covers it; a camera or task that is not named is not asked about. */
export function allow({ keyId, scope }: Caller, verb: Verb, about: { readonly camera?: string | undefined; readonly task?: string | undefined } = {}): void {
  const refuse = (what: string): never => {
    throw new Fault('NOT_ALLOWED', `The key ${keyId} does not reach ${what}`)
  }
  if (!has(scope.verbs, verb)) refuse(verb)
  if (about.camera !== undefined && !has(scope.cameras, about.camera)) refuse(`camera ${about.camera}`)
  if (about.task !== undefined && !has(scope.tasks, about.task)) refuse(`task ${about.task}`)
}

/** What of a list somebody asked for lies in a scope: all of the scope when nothing was asked for. */
export function within(allowed: readonly string[], asked: readonly string[] | undefined): readonly string[] {
  if (!asked || asked.length === 0) return allowed
  return allowed.length === 0 ? asked : asked.filter((name) => allowed.includes(name))
}

/**
 * A second's worth may be taken at once, and no more than `rate` a second for long. A request for more than that is let through
 * when nothing but itself was taken before, and paid for afterwards: it could never be made otherwise.
 */
export class Bucket {
  readonly #rate: number
  #left: number
  #at: EpochMs

  constructor(rate: number, now: EpochMs) {
    this.#rate = rate
    this.#left = Math.max(1, rate)
    this.#at = now
  }

  take(count: number, now: EpochMs): boolean {
    this.#left = Math.min(Math.max(1, this.#rate), this.#left + ((now - this.#at) / 1000) * this.#rate)
    this.#at = now
    const most = Math.max(1, this.#rate)
    if (this.#left < (count <= most ? count : most - 1)) return false
    this.#left -= count
    return true
  }
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Of routes that ask for one. */
    caller: Caller
  }
}

/** Routes that take a ticket in place of a key: browsers send no headers with a WebSocket. */
const ticketPaths = ['/v1/feeds', '/v1/stream']

/** From here on every route of the app knows who asks; those under `isOpen` are for everybody. */
export function requireCaller(app: FastifyInstance, access: Access, isOpen: (path: string) => boolean): void {
  app.decorateRequest('caller')
  app.addHook('onRequest', async (request) => {
    const path = request.url.split('?')[0] ?? ''
    if (isOpen(path)) return
    const { ticket } = request.query as { ticket?: unknown }
    const used = ticketPaths.includes(path) && typeof ticket === 'string' ? ticket : undefined
    request.caller = await access.callerOf(request.headers.authorization, used)
    // a ticket was counted when it was given
    if (request.headers.authorization !== undefined || used === undefined) request.caller.take()
  })
  app.post(
    '/v1/tickets',
    { config: { described: { response: answered(Ticket) } }, schema: { summary: 'A ticket for one WebSocket of a browser: ?ticket=…, within half a minute' } },
    ({ caller }) => access.ticketFor(caller),
  )
}

const Ticket = Type.Object({ ticket: Type.String(), expiresInSeconds: Type.Integer() })

const digestOf = (secret: string): Buffer => createHash('sha256').update(secret).digest()

export interface NewKey {
  readonly keyId: string
  /** Shown once. */
  readonly key: string
}

export async function addKey(pool: Pick<Pool, 'query'>, name: string, scope: Scope, rate: number | undefined): Promise<NewKey> {
  const [keyId, secret] = [randomBytes(6).toString('hex'), randomBytes(32).toString('base64url')]
  await pool.query('insert into api_keys (key_id, name, digest, scope, rate) values ($1, $2, $3, $4, $5)', [keyId, name, digestOf(secret), scope, rate ?? null])
  return { keyId, key: `fl_${keyId}_${secret}` }
}

interface KeyRow {
  readonly key_id: string
  readonly digest: Buffer
  readonly scope: Scope
  readonly rate: number | null
}

const refresh: Ms = 2_000
const ticketLife: Ms = 30_000

export type HeldSocket = Pick<WebSocket, 'on' | 'close'>
const revoked = 1008

export interface Access {
  /** Who sends this header or this ticket. Throws `UNAUTHORIZED`. */
  callerOf(authorization: string | undefined, ticket: string | undefined): Promise<Caller>
  /** K2 */
  whileHeld(caller: Caller, socket: HeldSocket): void
  /** A ticket for one WebSocket of this caller. */
  ticketFor(caller: Caller): Promise<{ readonly ticket: string; readonly expiresInSeconds: number }>
}

/** Everybody may everything: for loopback, where whoever asks is on this machine already. */
export const openAccess: Access = {
  callerOf: () => Promise.resolve({ keyId: 'none', scope: everything, take: () => {} }),
  whileHeld: () => {},
  ticketFor: () => Promise.resolve({ ticket: 'none', expiresInSeconds: ticketLife / 1000 }),
}

export class KeyAccess implements Access {
  readonly #pool: Pool
  readonly #log: Log
  /** Undefined until they have been read once. */
  #keys: Map<string, KeyRow> | undefined
  readonly #sockets = new Map<HeldSocket, string>()
  readonly #buckets = new Map<string, { readonly rate: number; readonly bucket: Bucket }>()

  constructor(pool: Pool, log: Log) {
    this.#pool = pool
    this.#log = log
  }

  /** K1 */
  async run(signal: AbortSignal): Promise<void> {
    let failing = false
    while (!signal.aborted) {
      try {
        await this.read()
        failing = false
      } catch (thrown) {
        if (!failing) this.#log.warn({ err: thrown }, 'keys could not be read, the last known ones hold')
        failing = true
      }
      await sleep(refresh, undefined, { signal }).catch(() => {})
    }
  }

  async read(): Promise<void> {
    const { rows } = await this.#pool.query<KeyRow>('select key_id, digest, scope, rate from api_keys where revoked_at is null')
    this.#keys = new Map(rows.map((row) => [row.key_id, row]))
    const keys = this.#keys
    for (const [socket, keyId] of this.#sockets) if (!keys.has(keyId)) socket.close(revoked, 'the key was revoked')
  }

  whileHeld({ keyId }: Caller, socket: HeldSocket): void {
    this.#sockets.set(socket, keyId)
    socket.on('close', () => this.#sockets.delete(socket))
  }

  #caller({ key_id, scope, rate }: KeyRow): Caller {
    return {
      keyId: key_id,
      scope,
      take: (count = 1) => {
        if (rate === null) return
        const now = Date.now()
        const known = this.#buckets.get(key_id)
        const own = known?.rate === rate ? known : { rate, bucket: new Bucket(rate, now) }
        this.#buckets.set(key_id, own)
        if (!own.bucket.take(count, now)) throw new Fault('RATE_LIMITED', `The key ${key_id} may ask ${rate} times a second`)
      },
    }
  }

  get isLoaded(): boolean {
    return this.#keys !== undefined
  }

  async callerOf(authorization: string | undefined, ticket: string | undefined): Promise<Caller> {
    const keys = this.#keys
    // nobody knows yet whose it is: a client that is told so gives up
    if (!keys) throw new Fault('DATABASE_UNAVAILABLE', 'The keys have not been read yet')
    if (authorization !== undefined) {
      const [, keyId = '', secret = ''] = /^Bearer fl_([0-9a-f]{12})_([\w-]{43})$/.exec(authorization) ?? []
      const row = keys.get(keyId)
      if (!row || !timingSafeEqual(row.digest, digestOf(secret))) throw new Fault('UNAUTHORIZED', 'The key is unknown or was revoked')
      return this.#caller(row)
    }
    if (ticket === undefined) throw new Fault('UNAUTHORIZED', 'Send a key: Authorization: Bearer fl_…')
    const { rows } = await this.#pool.query<{ key_id: string }>('delete from api_tickets where digest = $1 returning key_id, expires_at > now() as holds', [digestOf(ticket)])
    const [used] = rows as { key_id: string; holds: boolean }[]
    const row = used?.holds ? keys.get(used.key_id) : undefined
    if (!row) throw new Fault('UNAUTHORIZED', 'The ticket was used, or has expired')
    return this.#caller(row)
  }

  async ticketFor({ keyId }: Caller): Promise<{ readonly ticket: string; readonly expiresInSeconds: number }> {
    const ticket = randomBytes(24).toString('base64url')
    await this.#pool.query('delete from api_tickets where expires_at < now()')
    await this.#pool.query("insert into api_tickets (digest, key_id, expires_at) values ($1, $2, now() + $3 * interval '1 millisecond')", [digestOf(ticket), keyId, ticketLife])
    return { ticket, expiresInSeconds: ticketLife / 1000 }
  }
}
