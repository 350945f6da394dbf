/**
 * `agents.desired`: what somebody elsewhere wants this agent to do. The latest wish that can be fulfilled is kept beside
 * the spool, so that an agent that is offline for days starts with it; one that is wrong is reported and has no effect.
 */
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Fault, rootMessage, toError } from '@frameloop/kit/fault'
import type { KafkaClient } from '@frameloop/kit/kafka'
import type { Log } from '@frameloop/kit/log'
import type { Ms } from '@frameloop/kit/units'
import type { Codec } from '@frameloop/schemas/codec'
import type { AgentDesired } from '@frameloop/schemas/events'
import { topics } from '@frameloop/schemas/topics'
import { parse } from 'yaml'
import { type AgentSettings, parseAgentConfig, type WantedSettings } from './config.ts'

export interface DesiredState {
  /** Of the wish that runs; empty: the agent's own file. */
  version: string
  /** Why the latest wish does not run. */
  error: string
}

const brokenPause: Ms = 30_000

const fileOf = (folder: string): string => join(folder, 'desired.json')

/** The settings of the agent's file with the cameras, and the uploads where they are named, of a wish. Throws `CONFIG_INVALID`. */
export function settingsWith(ownFile: string, wish: Pick<AgentDesired, 'version' | 'settings'>): AgentSettings {
  let wanted: Partial<WantedSettings>
  try {
    wanted = JSON.parse(wish.settings) as typeof wanted
  } catch (thrown) {
    throw new Fault('CONFIG_INVALID', `The wanted settings ${wish.version} are no JSON: ${toError(thrown).message}`, {}, thrown)
  }
  const own = parse(readFileSync(ownFile, 'utf8')) as object
  const { cameras, uploads } = wanted
  return parseAgentConfig(JSON.stringify({ ...own, cameras, ...(uploads ? { uploads } : {}) }), `the wanted settings ${wish.version}`)
}

/** A wish, and where it stood on its topic: the last one is the latest, whatever clock whoever wished it had. */
export type PlacedWish = AgentDesired & { readonly offset?: number }

/** The wish that ran last. */
export function keptWish(folder: string): PlacedWish | undefined {
  return existsSync(fileOf(folder)) ? (JSON.parse(readFileSync(fileOf(folder), 'utf8')) as PlacedWish) : undefined
}

function keep(folder: string, wish: PlacedWish): void {
  const part = `${fileOf(folder)}.part`
  const file = openSync(part, 'w', 0o600)
  try {
    writeSync(file, JSON.stringify(wish))
    fsyncSync(file)
  } finally {
    closeSync(file)
  }
  renameSync(part, fileOf(folder))
}

export interface DesiredTools {
  readonly agentId: string
  readonly folder: string
  readonly state: DesiredState
  /** Makes it so; throws when it cannot be. */
  readonly fulfil: (wish: AgentDesired) => Promise<void>
  readonly log: Log
}

/** Fulfils a wish, or says why not; what ran before goes on then. */
export async function fulfilWish(wish: PlacedWish, { folder, state, fulfil, log }: DesiredTools): Promise<void> {
  try {
    await fulfil(wish)
    state.version = wish.version
    state.error = ''
    keep(folder, wish)
    log.info({ version: wish.version }, 'wanted settings taken over')
  } catch (thrown) {
    state.error = `${wish.version}: ${rootMessage(thrown)}`
    log.error({ err: thrown, version: wish.version }, 'wanted settings are wrong and were not taken over')
  }
}

/** Follows the wishes for this agent until the signal. */
export async function followDesired(kafka: KafkaClient, codec: Codec, tools: DesiredTools, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await followUntilBroken(kafka, codec, tools, signal)
    } catch (thrown) {
      tools.log.warn({ err: thrown }, 'wanted settings cannot be read now')
      await sleep(brokenPause, undefined, { signal }).catch(() => {})
    }
  }
}

/** Throws when the consumer has given up. */
async function followUntilBroken(kafka: KafkaClient, codec: Codec, tools: DesiredTools, signal: AbortSignal): Promise<void> {
  // its offsets are never committed: each start reads the latest wish again, also one that could not be fulfilled
  const consumer = kafka.consumer(`frameloop.agent.${tools.agentId}.desired`)
  let stop = (): void => {}
  const ended = new Promise<void>((resolve, reject) => {
    stop = resolve
    signal.addEventListener('abort', stop, { once: true })
    consumer.on('consumer.crash', ({ payload: { error, restart } }) => (restart ? undefined : reject(error)))
  })
  ended.catch(() => {})
  let { offset: latest = -1, wantedAt = 0 } = keptWish(tools.folder) ?? {}
  try {
    await consumer.connect()
    await consumer.subscribe({ topic: topics.agentsDesired.name, fromBeginning: true })
    await consumer.run({
      autoCommit: false,
      eachMessage: async ({ message }) => {
        if (message.key?.toString('utf8') !== tools.agentId || !message.value) return
        const wish = await codec.decode('AgentDesired', message.value)
        // read again after a restart; a topic that was made anew begins anew
        const offset = Number(message.offset)
        if (offset <= latest && wish.wantedAt <= wantedAt) return
        ;[latest, wantedAt] = [offset, wish.wantedAt]
        await fulfilWish({ ...wish, offset }, tools)
      },
    })
    await ended
  } finally {
    signal.removeEventListener('abort', stop)
    // it waits for what it has asked, up to five seconds, and there is nothing of its own to be kept
    await Promise.race([consumer.disconnect().catch(() => {}), sleep(1_000)])
  }
}
