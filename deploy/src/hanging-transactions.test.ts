import { expect, test } from 'vitest'
import { type Entry, outcomeOf } from './hanging-transactions.ts'

const open = { producerId: 7n, producerEpoch: 3 }
const log = (...entries: readonly (readonly [number, string])[]): Entry[] => entries.map(([epoch, state]) => ({ id: 'a', producerId: 7n, epoch, state }))

test.each<readonly [string, 'commit' | 'abort' | undefined, Entry[]]>([
  ['is under way', undefined, log([3, 'Empty'], [3, 'Ongoing'])],
  ['is decided, and its markers are being written', undefined, log([3, 'Ongoing'], [3, 'PrepareCommit'])],
  ['was committed', 'commit', log([3, 'Ongoing'], [3, 'PrepareCommit'], [3, 'CompleteCommit'])],
  ['was aborted', 'abort', log([3, 'Ongoing'], [3, 'PrepareAbort'], [3, 'CompleteAbort'])],
  ['was given up for the silence of its producer', 'abort', log([3, 'Ongoing'], [4, 'PrepareAbort'], [4, 'CompleteAbort'])],
  ['was committed, and its producer came back and aborts another', 'commit', log([3, 'PrepareCommit'], [3, 'CompleteCommit'], [4, 'Empty'], [4, 'Ongoing'], [4, 'PrepareAbort'])],
  ['follows one that was committed', undefined, log([3, 'PrepareCommit'], [3, 'CompleteCommit'], [3, 'Ongoing'])],
  ['was committed, of which the log holds the end only', 'commit', log([3, 'CompleteCommit'])],
  ['was ended in a part of the log that is gone', undefined, log([5, 'Empty'], [5, 'CompleteAbort'])],
  ['is of a producer that the log does not know', undefined, []],
])('a transaction that %s: %s', (_, outcome, entries) => {
  const others: Entry[] = [
    { id: 'b', producerId: 8n, epoch: 3, state: 'PrepareAbort' },
    { id: 'b', producerId: 8n, epoch: 3, state: 'CompleteAbort' },
  ]
  expect(outcomeOf(open, [...others, ...entries])).toBe(outcome)
})
