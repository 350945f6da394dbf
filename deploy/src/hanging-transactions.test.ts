import { expect, test } from 'vitest'
import { type Entry, entryOf, outcomeOf, Writer } from './hanging-transactions.ts'

const open = { topic: 't', partition: 1, producerId: 7n, producerEpoch: 3 }
/** `here`: it is about the open partition too. */
const entry = (epoch: number, state: string, here = true): Entry => ({ id: 'a', producerId: 7n, epoch, state, partitions: here ? ['t 0', 't 1'] : ['t 0'] })
const done = (epoch: number, state: string): Entry => ({ ...entry(epoch, state), partitions: [] })

test.each<readonly [string, 'commit' | 'abort' | undefined, Entry[]]>([
  ['is under way', undefined, [done(3, 'Empty'), entry(3, 'Ongoing')]],
  ['is decided, and its markers are being written', undefined, [entry(3, 'Ongoing'), entry(3, 'PrepareCommit')]],
  ['was committed', 'commit', [entry(3, 'Ongoing'), entry(3, 'PrepareCommit'), done(3, 'CompleteCommit')]],
  ['was aborted', 'abort', [entry(3, 'Ongoing'), entry(3, 'PrepareAbort'), done(3, 'CompleteAbort')]],
  ['was given up for the silence of its producer', 'abort', [entry(3, 'Ongoing'), entry(4, 'PrepareAbort'), done(4, 'CompleteAbort')]],
  [
    'was committed, and its producer came back and aborts another',
    'commit',
    [entry(3, 'PrepareCommit'), done(3, 'CompleteCommit'), done(4, 'Empty'), entry(4, 'Ongoing'), entry(4, 'PrepareAbort')],
  ],
  [
    'was committed, and its producer went on elsewhere and was given up there',
    'commit',
    [entry(3, 'PrepareCommit'), done(3, 'CompleteCommit'), entry(3, 'Ongoing', false), entry(4, 'PrepareAbort', false), done(4, 'CompleteAbort')],
  ],
  ['follows one that was committed', undefined, [entry(3, 'PrepareCommit'), done(3, 'CompleteCommit'), entry(3, 'Ongoing')]],
  ['was ended in a part of the log that is gone', undefined, [done(3, 'CompleteCommit'), done(5, 'Empty'), done(5, 'CompleteAbort')]],
  ['is of a producer that the log does not know', undefined, []],
])('a transaction that %s: %s', (_, outcome, entries) => {
  const others: Entry[] = ['PrepareAbort', 'CompleteAbort'].map((state) => ({ ...entry(3, state), id: 'b', producerId: 8n }))
  expect(outcomeOf(open, [...others, ...entries])).toBe(outcome)
})

test('what the coordinator wrote down is read in either encoding', () => {
  const key = Buffer.concat([Buffer.from([0, 0, 0, 2]), Buffer.from('id')])
  const head = (version: number): Writer => new Writer().int16(version).int64(9n).int16(4).int32(15_000).int8(2)
  const times = (to: Writer): Buffer => to.int64(1n).int64(2n).bytes
  const plain = Buffer.concat([head(0).int32(1).int16(1).bytes, Buffer.from('t'), times(new Writer().int32(2).int32(0).int32(5))])
  const flexible = head(1)
  flexible.array(['t'], (topic) => flexible.string(topic).array([0, 5], flexible.int32).tags())
  for (const value of [plain, times(flexible)]) expect(entryOf(key, value)).toEqual({ id: 'id', producerId: 9n, epoch: 4, state: 'PrepareCommit', partitions: ['t 0', 't 5'] })
  expect(entryOf(key, Buffer.alloc(0))).toBeUndefined()
})
