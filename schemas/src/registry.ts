/** A thin client of the Confluent schema registry API: all an agent needs (the full client weighs 170 MB). */
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage } from '@frameloop/kit/fault'

export interface SchemaRegistry {
  /** The id of this schema under this subject; registers it when it is new. Throws `SCHEMA_INCOMPATIBLE`. */
  register(subject: string, schema: string): Promise<number>
  /** The text of a schema. Throws `SCHEMA_UNKNOWN`. */
  schemaOf(id: number): Promise<string>
}

interface RegistryError {
  readonly error_code?: number
  readonly message?: string
}

/** Confluent's API: "Schema not found". */
const schemaNotFound = 40_403

export function openRegistry(baseUrl: string, login?: { readonly username: string; readonly password: string }): SchemaRegistry {
  const base = baseUrl.replace(/\/+$/, '')
  const headers = {
    ...(login ? { authorization: `Basic ${Buffer.from(`${login.username}:${login.password}`).toString('base64')}` } : {}),
    'content-type': 'application/vnd.schemaregistry.v1+json',
    accept: 'application/vnd.schemaregistry.v1+json, application/json',
  }
  const call = async (path: string, init: RequestInit): Promise<{ readonly status: number; readonly body: unknown }> => {
    let failure: unknown
    for (let attempt = 0; attempt < 4; attempt += 1) {
      if (attempt > 0) await sleep(150 * 2 ** attempt)
      try {
        const response = await fetch(`${base}${path}`, { ...init, headers, signal: AbortSignal.timeout(10_000) })
        const body: unknown = await response.json().catch(() => ({}))
        if (response.status < 500) return { status: response.status, body }
        failure = new Error(`${response.status} ${(body as RegistryError).message ?? ''}`)
      } catch (thrown) {
        failure = thrown
      }
    }
    throw new Fault('REGISTRY_UNAVAILABLE', `The schema registry did not answer: ${rootMessage(failure)}`, { path }, failure)
  }
  return {
    async register(subject, schema) {
      const { status, body } = await call(`/subjects/${encodeURIComponent(subject)}/versions`, { method: 'POST', body: JSON.stringify({ schema }) })
      const id = (body as { id?: number }).id
      if (status === 409)
        throw new Fault('SCHEMA_INCOMPATIBLE', `The registry refuses this schema for ${subject}: ${(body as RegistryError).message ?? 'it is incompatible'}`, { subject })
      if (status !== 200 || id === undefined)
        throw new Fault('REGISTRY_UNAVAILABLE', `The registry answered ${status} to a registration of ${subject}: ${(body as RegistryError).message ?? ''}`, { subject, status })
      return id
    },
    async schemaOf(id) {
      const { status, body } = await call(`/schemas/ids/${id}`, { method: 'GET' })
      const { schema, error_code: code } = body as { schema?: string; error_code?: number }
      // any other refusal, or a page that something on the way made, says nothing about the schema
      if (status === 404 && code === schemaNotFound) throw new Fault('SCHEMA_UNKNOWN', `The registry knows no schema with id ${id}`, { id })
      if (status !== 200 || schema === undefined)
        throw new Fault('REGISTRY_UNAVAILABLE', `The registry answered ${status} to the question for schema ${id}: ${(body as RegistryError).message ?? ''}`, { id, status })
      return schema
    },
  }
}
