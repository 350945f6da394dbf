/**
 * `frameloop dead-letters list | show | redrive`. Rows in PostgreSQL say what lies where; the records themselves stay on their topics.
 * X1  Redriving publishes the original key and value unchanged on the topic they came from.
 * X2  Each further time is counted in the record (`fl-redrives`), and a record that keeps failing is left alone after a few.
 * X3  What has got through meanwhile is not sent again.
 */
import { Fault, rootMessage, toError } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import type { Pool } from '@frameloop/kit/postgres'
import { type Codec, openCodec } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { allTopics, deadLetterRetention, type EventName } from '@frameloop/schemas/topics'
import { readRanges } from '@frameloop/stream-processors/chain/kafka-bus'
import type { BusRecord } from '@frameloop/stream-processors/chain/stage'
import { timeOf } from './times.ts'

export interface DeadLetterFlags {
  readonly reason?: string
  readonly camera?: string
  readonly stage?: string
  readonly from?: string
  readonly to?: string
  readonly limit: number
  /** What can be sent again comes before what was already or has got through meanwhile. */
  readonly dueFirst?: boolean
}

export interface DeadLetter {
  readonly topic: string
  readonly partition: number
  readonly record_offset: number
  readonly stage: string
  readonly reason: string
  readonly message: string
  readonly origin_topic: string
  readonly origin_partition: number
  readonly origin_offset: number
  readonly camera_id: string
  readonly subject_id: string | null
  readonly at: Date
  /** How often it was sent again. */
  readonly redrives: number
  /** What it is about has got through since. */
  readonly settled: boolean
  /** It has failed too often, or is older than its topic keeps. */
  readonly is_given_up: boolean
}

/** Oldest first. */
export async function listDeadLetters(pool: Pool, flags: DeadLetterFlags): Promise<DeadLetter[]> {
  const { rows } = await pool.query<DeadLetter>(
    `select * from (
       select d.*, (select count(*)::int from redrives r where (r.topic, r.partition, r.record_offset) = (d.topic, d.partition, d.record_offset)) as redrives,
         exists (select 1 from media m where m.media_id = d.subject_id and m.status_rank = 4)
           or exists (select 1 from frames f where f.frame_id = d.subject_id and f.status_rank = 3) as settled
       from dead_letters d
       where ($1::text is null or d.reason = $1) and ($2::text is null or d.camera_id = $2) and ($3::text is null or d.stage = $3)
         and ($4::timestamptz is null or d.at >= $4) and ($5::timestamptz is null or d.at < $5)) l
     order by $7 and (redrives > 0 or settled or is_given_up or reason = 'REPLAYED'), at, topic, partition, record_offset limit $6`,
    [flags.reason ?? null, flags.camera ?? null, flags.stage ?? null, timeOf(flags.from, '--from'), timeOf(flags.to, '--to'), flags.limit, flags.dueFirst ?? false],
  )
  return rows
}

export function placeOf({ topic, partition, record_offset }: Pick<DeadLetter, 'topic' | 'partition' | 'record_offset'>): string {
  return `${topic}/${partition}/${record_offset}`
}

export function showDeadLetters(letters: readonly DeadLetter[]): string {
  if (letters.length === 0) return 'There are no dead letters of this kind.'
  const counts = new Map<string, number>()
  for (const { reason } of letters) counts.set(reason, (counts.get(reason) ?? 0) + 1)
  return [
    ...letters.map(
      (letter) =>
        `${letter.at.toISOString()}  ${placeOf(letter)}  ${letter.stage} ${letter.reason}  camera ${letter.camera_id}${letter.redrives > 0 ? `, sent again ${letter.redrives} times` : ''}${letter.settled ? ', through by now' : ''}: ${letter.message}`,
    ),
    [...counts].map(([reason, count]) => `${count} ${reason}`).join(', '),
  ].join('\n')
}

/** `TOPIC/PARTITION/OFFSET` → the record. Throws `NOT_FOUND`. */
export async function readDeadLetter(brokers: string, place: string): Promise<BusRecord> {
  const [topic, partition, offset] = place.split('/')
  if (!topic || !/^\d+$/.test(partition ?? '') || !/^\d+$/.test(offset ?? ''))
    throw new Fault('REQUEST_INVALID', `${place} is no place of a dead letter; places look like media.captured.dead-letters/2/17`)
  const range = { topic, partition: Number(partition), from: Number(offset), until: Number(offset) + 1 }
  for await (const record of readRanges(brokers, 'frameloop.dead-letters', [range], AbortSignal.timeout(30_000))) return record
  throw new Fault('NOT_FOUND', `There is no record at ${place}; it may be older than the topic keeps`)
}

async function readable(codec: Codec, event: EventName, value: Buffer): Promise<string> {
  try {
    return JSON.stringify(await codec.decode(event, value), (_, part: unknown) => (part instanceof Uint8Array ? `${part.length} bytes` : part), 2)
  } catch (thrown) {
    return `not readable (${toError(thrown).message}); the bytes in hex:\n${value.toString('hex')}`
  }
}

/** The record for a person: headers, key, and the event when it can be read. */
export async function showDeadLetter(brokers: string, registryUrl: string, place: string): Promise<string> {
  const record = await readDeadLetter(brokers, place)
  const event = allTopics.find(({ name }) => name === record.headers['fl-origin-topic'])?.event
  const value = event ? await readable(openCodec(openRegistry(registryUrl)), event, record.value) : record.value.toString('hex')
  return [...Object.entries(record.headers).map(([name, text]) => `${name}: ${text}`), `key: ${record.key}`, value].join('\n')
}

/** A record that failed this often stays where it is. */
export const redriveLimit = 3

export interface Redriven {
  readonly sent: readonly DeadLetter[]
  /** Place → why it was left. */
  readonly left: ReadonlyMap<string, string>
}

export interface RedriveTools {
  readonly pool: Pool
  readonly brokers: string
  readonly dryRun: boolean
  readonly requestedBy: string
}

/** Sends dead letters through the chain again, in their order. */
export async function redrive(letters: readonly DeadLetter[], tools: RedriveTools): Promise<Redriven> {
  const left = new Map<string, string>()
  const due = letters.filter((letter) => {
    if (letter.reason === 'REPLAYED') left.set(placeOf(letter), 'it is a copy made by a replay, not something captured')
    else if (letter.settled) left.set(placeOf(letter), 'it got through meanwhile')
    else if (letter.is_given_up) left.set(placeOf(letter), 'it failed too often, or its topic keeps it no more')
    else if (letter.redrives > 0) left.set(placeOf(letter), 'it was sent again already; if it failed again, there is a newer dead letter')
    else return true
    return false
  })
  /** So that the next call begins with others. */
  const giveUp = ({ topic, partition, record_offset: offset }: DeadLetter) =>
    tools.pool.query('update dead_letters set is_given_up = true where topic = $1 and partition = $2 and record_offset = $3', [topic, partition, offset])
  const sent: DeadLetter[] = []
  if (due.length === 0 || tools.dryRun) return { sent: due, left }
  const producer = openKafka(tools.brokers, 'redrive', openLog('redrive', 'error')).producer()
  await producer.connect()
  try {
    for (const letter of due) {
      const record = await readDeadLetter(tools.brokers, placeOf(letter)).catch((thrown: unknown) => {
        // the topic keeps them for a month, and the row stays; the others are sent all the same
        left.set(placeOf(letter), `it cannot be read: ${rootMessage(thrown)}`)
      })
      if (!record) {
        if (letter.at.getTime() < Date.now() - deadLetterRetention) await giveUp(letter)
        continue
      }
      if (record.headers['fl-value']) {
        left.set(placeOf(letter), `its value is larger than a record may be; it lies in ${record.headers['fl-value']}`)
        continue
      }
      const attempt = Number(record.headers['fl-redrives'] ?? 0) + 1
      if (attempt > redriveLimit) {
        left.set(placeOf(letter), `it has failed ${attempt} times`)
        await giveUp(letter)
        continue
      }
      const headers = Object.fromEntries(Object.entries(record.headers).filter(([name]) => !name.startsWith('fl-')))
      await producer.send({
        topic: letter.origin_topic,
        acks: -1,
        messages: [{ key: record.keyBytes ?? record.key, value: record.value, headers: { ...headers, 'fl-redrives': String(attempt) } }],
      })
      await tools.pool.query('insert into redrives (topic, partition, record_offset, attempt, requested_by) values ($1, $2, $3, $4, $5) on conflict do nothing', [
        letter.topic,
        letter.partition,
        letter.record_offset,
        attempt,
        tools.requestedBy,
      ])
      // what was rejected may become something else: that epoch is counted anew
      await tools.pool.query(
        'delete from ledger l using (select camera_id, epoch from media where media_id = $1 union select camera_id, epoch from frames where frame_id = $1) s where (l.camera_id, l.epoch) = (s.camera_id, s.epoch)',
        [letter.subject_id],
      )
      sent.push(letter)
    }
  } finally {
    await producer.disconnect()
  }
  return { sent, left }
}
