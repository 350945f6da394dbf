/**
 * Work on pixels on all cores, while the main thread fetches, publishes and keeps its sockets.
 * T1  Two pictures at most are with each thread, one of them waiting: memory stays bounded whatever is sent.
 * T2  Threads start when there is something for them to do.
 * T3  A thread that dies (out of memory) is replaced, and so is one that has not ended within `endless`. What was with it is
 *     tried once more, alone: what a second one dies of has failed, and nothing else has.
 */
import { availableParallelism } from 'node:os'
import { Fault, type FaultCode } from '@frameloop/kit/fault'
import { Rooms } from '@frameloop/kit/rooms'
import { Turns } from '@frameloop/kit/turns'
import type { Ms } from '@frameloop/kit/units'
import { Piscina } from 'piscina'
import type { PictureLook, PixelWork, PreparedPicture } from './pixel-work.ts'

export interface Refused {
  readonly refused: FaultCode
  readonly message: string
}

export interface PixelThreads extends PixelWork {
  close(): Promise<void>
}

function resultOf<Result extends object>(answer: Result | Refused): Result {
  if ('refused' in answer) throw new Fault(answer.refused, answer.message)
  return answer
}

/** What a thread answers, and the memory that it was asked in. */
export interface Answered<Result> {
  readonly result: Result | Refused
  readonly room: ArrayBuffer
}

/** With what it waits for on a busy machine: a picture of 50 million pixels takes two seconds. */
const usualEndless: Ms = 60_000

/** `program`: where the built thread lies. */
export function openPixelThreads(count = availableParallelism(), program = new URL('./pixel-thread.mjs', import.meta.url), endless = usualEndless): PixelThreads {
  const threads = { filename: program.href, minThreads: 0, atomics: 'disabled' } as const
  const pool = new Piscina({ ...threads, maxThreads: count, idleTimeout: 600_000, concurrentTasksPerWorker: 2 })
  /** T3 */
  const alone = new Piscina({ ...threads, maxThreads: 1, idleTimeout: 10_000 })
  const rooms = new Rooms()
  /** Whoever sends bytes keeps them: a thread gets a copy. */
  const askIn = async <Result extends object>(among: Piscina, name: string, bytes: Uint8Array, more: readonly unknown[]): Promise<Result> => {
    const own = rooms.take(bytes.length)
    own.set(bytes)
    const tooLong = new AbortController()
    const timer = setTimeout(() => tooLong.abort(), endless)
    try {
      const { result, room } = (await among.run([own, ...more], { name, transferList: [own.buffer], signal: tooLong.signal })) as Answered<Result>
      rooms.give(room)
      return resultOf(result)
    } finally {
      clearTimeout(timer)
    }
  }
  /** T3: the clock of each runs once it has its thread. */
  const turns = new Turns<'alone'>()
  const ask = async <Result extends object>(name: string, bytes: Uint8Array, more: readonly unknown[]): Promise<Result> => {
    try {
      return await askIn<Result>(pool, name, bytes, more)
    } catch (thrown) {
      if (thrown instanceof Fault || isClosed) throw thrown
      return turns
        .take('alone', () => askIn<Result>(alone, name, bytes, more))
        .catch((second: unknown) => {
          throw (second as Error).name === 'AbortError' ? new Fault('PICTURE_UNREADABLE', `It was not decoded within ${endless / 1000} s`, {}, second) : second
        })
    }
  }
  let isClosed = false
  return {
    look: (bytes) => ask<PictureLook>('look', bytes, []),
    prepare: (bytes, zones, references) => ask<PreparedPicture>('prepare', bytes, [zones, references]),
    close: async () => {
      isClosed = true
      await Promise.all([pool.destroy(), alone.destroy()])
    },
  }
}
