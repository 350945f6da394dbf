/** A process with one stage that is killed by some of its records, for `2-faults.test.ts`: losses with the reason "kill". */
import { openObjectStore } from '@frameloop/kit/object-store'
import { runProcess } from '@frameloop/kit/run-process'
import { openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { topics } from '@frameloop/schemas/topics'
import { kafkaBus } from '@frameloop/stream-processors/chain/kafka-bus'
import { startStage } from '@frameloop/stream-processors/chain/run-stage'
import type { Stage } from '@frameloop/stream-processors/chain/stage'
import { ChainSettings } from '@frameloop/stream-processors/config'

const killer: Stage<'MediaLost'> = {
  name: 'killer',
  version: '1',
  inputs: [topics.mediaLost],
  outputs: [],
  async work({ event }) {
    if (event.reason === 'kill') process.kill(process.pid, 'SIGKILL')
    return { kind: 'emit', outputs: [] }
  },
}

await runProcess('killer', ChainSettings, async ({ config, log, metrics, lifetime, fail }) => {
  const store = openObjectStore(config)
  const stage = startStage(killer, {
    bus: kafkaBus(config.kafkaBrokers),
    instance: '1',
    codec: openCodec(openRegistry(config.schemaRegistryUrl)),
    store,
    bucketPrefix: config.bucketPrefix,
    log,
    metrics,
  })
  lifetime.run('killer', (signal) => stage.run(signal), fail)
})
