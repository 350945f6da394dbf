/** Whose word counts: public keys of agents, from PostgreSQL, refreshed while the process runs. */
import type { KeyObject } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Log } from '@frameloop/kit/log'
import type { Pool } from '@frameloop/kit/postgres'
import type { Ms } from '@frameloop/kit/units'
import type { MediaCaptured } from '@frameloop/schemas/events'
import { ingestAgentId } from '@frameloop/schemas/ids'
import { isSigned, publicKeyOf } from '@frameloop/schemas/signature'

export interface AgentKeys {
  of(agentId: string): KeyObject | undefined
  /** The first reading is done. */
  readonly loaded: boolean
}

/**
 * Why a medium is not believed to be its agent's, or undefined. Who has no key is believed unless `strict`; the ingest API,
 * from which all uploads come, counts as an agent.
 */
export function disbelief(event: MediaCaptured, signature: string | undefined, keys: AgentKeys, strict: boolean): string | undefined {
  if (event.source !== 'camera' && event.agentId !== ingestAgentId) return `it says to be an upload and to be of agent ${event.agentId}; uploads are of ${ingestAgentId}`
  const key = keys.of(event.agentId)
  if (!key) return strict ? `agent ${event.agentId} has no key here` : undefined
  if (isSigned({ ...event, sha256: event.object.sha256 }, signature, key)) return undefined
  return signature === undefined ? `it says to be of agent ${event.agentId} and is not signed` : `it says to be of agent ${event.agentId}, whose signature it does not bear`
}

export function openAgentKeys(pool: Pool, log: Log, refresh: Ms): AgentKeys & { readonly run: (signal: AbortSignal) => Promise<void> } {
  let keys: Map<string, KeyObject> | undefined
  let failing = false
  return {
    of: (agentId) => keys?.get(agentId),
    get loaded() {
      return keys !== undefined
    },
    async run(signal) {
      while (!signal.aborted) {
        try {
          const { rows } = await pool.query<{ agent_id: string; public_key: string }>('select agent_id, public_key from agent_keys')
          keys = new Map(rows.map(({ agent_id, public_key }) => [agent_id, publicKeyOf(public_key)]))
          failing = false
        } catch (thrown) {
          // the last known keys go on being used
          if (!failing) log.warn({ err: thrown }, 'keys of agents could not be read')
          failing = true
        }
        await sleep(refresh, undefined, { signal }).catch(() => {})
      }
    },
  }
}
