/** A process with one stage that copies records and numbers them from its memory, and ends itself at a step, for `crashes.ts`. */
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256Hex } from '@frameloop/kit/digest'
import { openObjectStore } from '@frameloop/kit/object-store'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import type { Topic } from '@frameloop/schemas/topics'
import { kafkaBus } from '@frameloop/stream-processors/chain/kafka-bus'
import { startStage } from '@frameloop/stream-processors/chain/run-stage'
import type { Stage } from '@frameloop/stream-processors/chain/stage'
import { ChainSettings } from '@frameloop/stream-processors/config'

const topic = (name: string): Topic<'MediaLost'> => ({ name, event: 'MediaLost', retention: 3_600_000, compacted: false })
const output = topic('crash.out')

/** Each camera's records get the numbers 1, 2, 3, … whatever happens: `seqTo` is the number, taken from the memory. */
const copier: Stage<'MediaLost'> = {
  name: 'crash',
  version: '1',
  inputs: [topic('crash.in')],
  outputs: [output],
  batch: 7,
  async work({ event }) {
    const body = Buffer.from(`${event.cameraId} ${event.seqFrom}`)
    const put = { role: 'processed' as const, key: `crash/${event.cameraId}/${event.seqFrom}`, body, sha256: sha256Hex(body), contentType: 'text/plain', metadata: {} }
    return { kind: 'emit', puts: [put], outputs: [{ topic: output, event, key: event.cameraId, id: `${event.cameraId}-${event.seqFrom}`, time: event.lostAt }] }
  },
  memory: {
    keyOf: ({ cameraId }) => cameraId,
    judge: ({ event }, outcome, remembered) => {
      const number = ((remembered as number | undefined) ?? 0) + 1
      if (outcome.kind !== 'emit') return { outcome, remember: remembered }
      return {
        outcome: {
          ...outcome,
          outputs: [{ topic: output, event: { ...event, seqTo: number }, key: event.cameraId, id: `${event.cameraId}-${event.seqFrom}`, time: event.lostAt }],
        },
        remember: number,
      }
    },
  },
}

const [, , step = '', nth = '1', delay = '0'] = process.argv
let seen = 0

await runProcess('crash', ChainSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const stage = startStage(copier, {
    bus: kafkaBus(config.kafkaBrokers),
    instance: '1',
    codec: openCodec(openRegistry(config.schemaRegistryUrl)),
    store: openObjectStore(config),
    bucketPrefix: config.bucketPrefix,
    log,
    metrics,
    onStep: async (at) => {
      if (at !== step) return
      seen += 1
      if (seen < Number(nth)) return
      // what was handed to the client may be on its way, or not
      await sleep(Number(delay))
      process.kill(process.pid, 'SIGKILL')
    },
  })
  lifetime.run('crash', (signal) => stage.run(signal), fail)
})
