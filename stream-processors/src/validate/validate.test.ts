import type { MediaValidated } from '@frameloop/schemas/events'
import { topics } from '@frameloop/schemas/topics'
import { expect, test } from 'vitest'
import type { Outcome } from '../chain/stage.ts'
import { remember } from './validate.ts'

const validated = { cameraId: 'c', capturedAt: 1_000, phash: 'ff', fingerprint: 'f1', marks: ['dark'] } as unknown as MediaValidated
const accepted: Outcome = { kind: 'emit', outputs: [{ topic: topics.mediaValidated, key: 'c', id: 'm', time: 1_000, event: validated }] }
const refused: Outcome = { kind: 'reject', reason: 'PICTURE_UNREADABLE', message: 'damaged' }

test('an announcement that comes again leaves nothing behind, whether it was accepted or refused', () => {
  const first = remember(accepted, 1, 0, undefined)
  const second = remember(refused, 2, 0, first.remember)
  expect(remember(refused, 1, 0, second.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
  expect(remember(refused, 2, 0, second.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
})

test('what was refused is judged again once each time it is sent again, and never after it was accepted', () => {
  const first = remember(refused, 7, 0, undefined)
  const again = remember(refused, 7, 1, first.remember)
  expect(again.outcome).toBe(refused)
  expect(remember(refused, 7, 1, again.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
  const third = remember(accepted, 7, 2, again.remember)
  expect(third.outcome).toEqual(accepted)
  expect(remember(refused, 7, 3, third.remember).outcome).toEqual({ kind: 'emit', outputs: [] })
  expect(third.remember).toMatchObject({ refused: [], redriven: {} })
})

test('a record that does not bear its agent’s signature takes no number away from the frame whose it is', () => {
  const first = remember(accepted, 1, 0, undefined)
  for (const reason of ['SIGNATURE_INVALID', 'RECORD_MALFORMED'] as const) {
    const forged: Outcome = { kind: 'reject', reason, message: 'it is not signed, or none at all' }
    const stranger = remember(forged, 2, 1e9, first.remember)
    expect(stranger).toEqual({ outcome: forged, remember: first.remember })
    expect(remember(accepted, 2, 0, stranger.remember).outcome).toMatchObject({ kind: 'emit', outputs: [{}] })
  }
})

test('a picture is marked by what the one before it was, across batches', () => {
  const first = remember(accepted, 1, 0, undefined)
  const second = remember(accepted, 2, 0, JSON.parse(JSON.stringify(first.remember)))
  expect(second.outcome).toMatchObject({ outputs: [{ event: { marks: ['dark', 'near-duplicate'] } }] })
  // what is refused or came before changes nothing of it
  expect(remember(refused, 3, 0, second.remember).remember.picture).toEqual(second.remember.picture)
})

test('a camera whose every frame is refused is remembered in a few bytes, and what was remembered before is still known', () => {
  let state = remember(refused, 1, 0, undefined).remember
  for (let seq = 2; seq <= 10_000; seq += 1) state = remember(refused, seq, 0, state).remember
  expect(JSON.stringify(state).length).toBeLessThan(100)
  expect(remember(accepted, 5_000, 1, state)).toMatchObject({
    outcome: accepted,
    remember: {
      refused: [
        [1, 4_999],
        [5_001, 10_000],
      ],
    },
  })
  const before = { seen: [[1, 3]] as const, refused: { 2: 0, 3: 2 } }
  expect(remember(refused, 3, 2, before).outcome).toEqual({ kind: 'emit', outputs: [] })
  expect(remember(accepted, 3, 3, before).remember).toMatchObject({ refused: [[2, 2]], redriven: {} })
})
