import { Fault } from '@frameloop/kit/fault'
import { openLog } from '@frameloop/kit/log'
import type { FeaturesPrepared } from '@frameloop/schemas/events'
import type { BusRecord, StageContext } from '@frameloop/stream-processors/chain/stage'
import { expect, test } from 'vitest'
import type { ModelSlots, Slot } from '../models/model-slots.ts'
import { liveStage, runLive } from './live.ts'

const log = openLog('test', 'silent')
const never = new AbortController().signal
const fenced = (): Fault => new Fault('PRODUCER_FENCED', 'Kafka has ended the membership')

/** Ends as it is told, one end after the other. */
function stage(ends: readonly (Error | undefined)[]): { readonly run: () => Promise<void>; readonly times: () => number } {
  let at = 0
  return {
    run: async () => {
      const end = ends[at++]
      if (end) throw end
    },
    times: () => at,
  }
}

const slotOf = (alias: string): Slot =>
  ({ change: { alias, version: alias, digest: alias, modelName: 'm', preprocessing: 'p' }, model: { meta: { classes: ['a', 'b'], referencePictures: {} } } }) as unknown as Slot
const zoneOf = (name: string) => ({ zone: name, tasks: ['t'], offset: 0, shape: [2, 2, 3], x: 0, y: 0, width: 2, height: 2 })
const frame = { frameId: 'f', cameraId: 'c', preprocessing: 'p', frameAt: 5, pixels: new Uint8Array(12), zones: [zoneOf('left'), zoneOf('right')] } as unknown as FeaturesPrepared
const invalid = new Fault('MODEL_INVALID', 'The model answered with something that is no number')

/** What becomes of the frame when both models answer as told, and which of them were said to have failed. */
async function answered(says: (alias: string, zone: string) => Fault | undefined): Promise<{ readonly outcome: Promise<unknown>; readonly failed: string[] }> {
  const failed: string[] = []
  const slots = { answering: () => [slotOf('champion'), slotOf('shadow')] } as unknown as ModelSlots
  const engine = {
    async ask(question: { readonly digest: string; readonly referenceKey: string }) {
      const fault = says(question.digest, question.referenceKey.split(' ')[1] ?? '')
      if (fault) throw fault
      return { scored: [{ scores: [0.2, 0.8] }], predictMs: 1 }
    },
  }
  const stage = liveStage(slots, engine as never, { made: () => {}, failed: (slot) => void failed.push(slot.change.alias) })
  const outcome = Promise.resolve(stage.work({ event: frame, record: {} as BusRecord } as never, { now: () => 7 } as unknown as StageContext))
  await outcome.catch(() => {})
  return { outcome, failed }
}

test('each zone of a live frame is answered by each model, in their order', async () => {
  const { outcome, failed } = await answered(() => undefined)
  const events = ((await outcome) as { outputs: { event: { zone: string; alias: string; answer: string } }[] }).outputs.map(({ event: { zone, alias, answer } }) => [
    zone,
    alias,
    answer,
  ])
  expect(events).toEqual([
    ['left', 'champion', 'b'],
    ['left', 'shadow', 'b'],
    ['right', 'champion', 'b'],
    ['right', 'shadow', 'b'],
  ])
  expect(failed).toEqual([])
})

test('a model whose answer is no number takes nothing from what another one says about a live frame', async () => {
  const { outcome, failed } = await answered((alias) => (alias === 'shadow' ? invalid : undefined))
  expect(((await outcome) as { outputs: { event: { alias: string } }[] }).outputs.map(({ event }) => event.alias)).toEqual(['champion', 'champion'])
  expect(failed).toEqual(['shadow', 'shadow'])
})

test('a live frame about which no model says a number is refused, not answered', async () => {
  const { outcome } = await answered(() => invalid)
  await expect(outcome).rejects.toBe(invalid)
})

test('a live frame that a model has no room for is asked again as a whole, so that no answer of it is missing', async () => {
  const { outcome } = await answered((alias, zone) => (alias === 'shadow' && zone === 'right' ? new Fault('OVERLOADED', 'full') : undefined))
  expect(await outcome).toMatchObject({ kind: 'retry', cause: { code: 'OVERLOADED' } })
})

test('live frames whose place in Kafka is lost join again, and nothing else ends with them', async () => {
  const { run, times } = stage([fenced(), fenced(), fenced(), undefined])
  await runLive(run, never, log, 1)
  expect(times()).toBe(4)
})

test('whose name another process has gives it up in the end', async () => {
  const { run, times } = stage(Array.from({ length: 9 }, fenced))
  await expect(runLive(run, never, log, 1)).rejects.toMatchObject({ code: 'PRODUCER_FENCED' })
  expect(times()).toBe(4)
})

test('any other end of the live frames is the end of the process', async () => {
  const { run, times } = stage([new Error('a bug')])
  await expect(runLive(run, never, log, 1)).rejects.toThrow('a bug')
  expect(times()).toBe(1)
})
