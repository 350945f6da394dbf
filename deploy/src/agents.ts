/** `frameloop agents list | set`: what agents report, and what they should do. */
import { wantedOf } from '@frameloop/edge-agent/config'
import { isCurrent, waitingText } from '@frameloop/edge-agent/report'
import { Fault } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { Pool } from '@frameloop/kit/postgres'
import { showMs } from '@frameloop/kit/units'
import { type Codec, recordOf } from '@frameloop/schemas/codec'
import type { AgentReported } from '@frameloop/schemas/events'
import { isName } from '@frameloop/schemas/ids'
import { publicKeyOf } from '@frameloop/schemas/signature'
import { topics } from '@frameloop/schemas/topics'
import { readTopic } from '@frameloop/stream-processors/chain/kafka-bus'
import { readNamed } from './label-file.ts'

/** The latest report of every agent, by name. */
export async function listAgents(brokers: string, codec: Codec): Promise<AgentReported[]> {
  const latest = new Map<string, AgentReported>()
  for await (const { key, value } of readTopic(brokers, 'frameloop.agents', topics.agentsReported.name, AbortSignal.timeout(60_000)))
    if (value.length > 0) latest.set(key, await codec.decode('AgentReported', value))
  return [...latest.values()].sort((a, b) => a.agentId.localeCompare(b.agentId))
}

export function showAgents(agents: readonly AgentReported[], now: number): string {
  if (agents.length === 0) return 'No agent has reported yet.'
  return agents
    .map((report) => {
      const { agentId, siteId, version, reportedAt, cameras, desiredVersion, desiredError, announceError } = report
      const current = cameras.filter(isCurrent)
      const lines = current.map(
        ({ cameraId, state, message, framesPerSecond, health, uploadError }) =>
          `  ${cameraId.padEnd(16)} ${state.padEnd(12)} ${framesPerSecond.toFixed(1)}/s  ${[...health, message, uploadError].filter(Boolean).join(', ')}`,
      )
      const runs = desiredVersion ? `wanted settings ${desiredVersion}` : 'its own file'
      return [
        `${agentId} of ${siteId}, version ${version}, reported ${showMs(Math.max(0, now - reportedAt))} ago, ${waitingText(report, reportedAt)}, runs ${runs}`,
        ...(announceError ? [`  its frames wait for Kafka: ${announceError}`] : []),
        ...(desiredError ? [`  does not run ${desiredError}`] : []),
        ...lines,
      ]
        .map((line) => line.trimEnd())
        .join('\n')
    })
    .join('\n')
}

/** Makes the public half of an agent's signing key known: from then on only what is signed with it counts as this agent's. */
export async function addAgentKey(pool: Pool, agentId: string, pem: string): Promise<void> {
  if (!isName(agentId)) throw new Fault('REQUEST_INVALID', `${agentId} is no name of an agent`)
  await pool.query('insert into agent_keys (agent_id, public_key) values ($1, $2) on conflict (agent_id) do update set public_key = excluded.public_key, added_at = now()', [
    agentId,
    publicKeyOf(pem).export({ type: 'spki', format: 'pem' }).toString(),
  ])
}

/** Publishes the cameras, and the uploads if there, of a file as what the agent should do. Throws `CONFIG_INVALID` with every problem. */
export async function wantCameras(agentId: string, file: string, version: string, brokers: string, codec: Codec): Promise<number> {
  if (!isName(agentId)) throw new Fault('REQUEST_INVALID', `${agentId} is no name of an agent`)
  const wanted = wantedOf(readNamed(file), file)
  const producer = openKafka(brokers, 'agents', openLog('agents', 'error')).producer()
  await producer.connect()
  try {
    const now = Date.now()
    const wish = { agentId, version, wantedAt: now, settings: JSON.stringify(wanted) }
    const record = await recordOf(codec, topics.agentsDesired, wish, { key: agentId, id: `${agentId}-${version}`, time: now, source: 'frameloop agents', traceparent: '' })
    await producer.send({ topic: topics.agentsDesired.name, acks: -1, messages: [record] })
    return wanted.cameras.length
  } finally {
    await producer.disconnect()
  }
}
