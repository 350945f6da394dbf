/** What the agent's settings say of the world it speaks to, as what opens it wants to hear it. */
import { readFileSync } from 'node:fs'
import { openObjectStore } from '@frameloop/kit/object-store'
import type { Bytes } from '@frameloop/kit/units'
import { openRegistry } from '@frameloop/schemas/registry'
import type { AgentSettings } from './config.ts'

/** The part of the settings that `openKafka` takes; certificates are read here. */
export function kafkaOf({ kafka }: AgentSettings) {
  const { brokers, tls, mechanism, username = '', password = '' } = kafka
  return {
    brokers: brokers.join(','),
    ...(tls ? { tls: Object.fromEntries(Object.entries(tls).map(([name, path]) => [name, readFileSync(path, 'utf8')])) } : {}),
    ...(mechanism ? { sasl: { mechanism, username, password } } : {}),
  }
}

export function registryOf({ registry: { url, username, password = '' } }: AgentSettings) {
  return openRegistry(url, username === undefined ? undefined : { username, password })
}

/** What one of several uploads over a link of 400 kbit/s gets. */
const slowest: Bytes = 8_000

export function storeOf({ s3 }: AgentSettings) {
  return openObjectStore({ s3Endpoint: s3.endpoint, s3Region: s3.region, awsAccessKeyId: s3.accessKeyId, awsSecretAccessKey: s3.secretAccessKey }, { slowest })
}

/** Servers whose clocks are right. */
export function clocksOf({ s3, registry }: AgentSettings): string[] {
  return [s3.endpoint || `https://s3.${s3.region}.amazonaws.com`, registry.url]
}
