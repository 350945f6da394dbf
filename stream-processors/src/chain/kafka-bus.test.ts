import type rdkafka from 'node-rdkafka'
import { expect, test } from 'vitest'
import { produce } from './kafka-bus.ts'

test('sending a record leaves nothing behind: what stands in the place of the opaque would stay for good', () => {
  const calls: unknown[][] = []
  const client = { produce: (...args: unknown[]) => calls.push(args) } as unknown as rdkafka.Producer
  produce(client, { topic: 't', key: 'k', value: Buffer.from('v'), headers: { a: '1' } })
  expect(calls).toEqual([['t', null, Buffer.from('v'), 'k', null, undefined, [{ a: '1' }]]])
})
