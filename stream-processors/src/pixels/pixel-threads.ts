/**
 * Work on pixels on all cores, while the main thread fetches, publishes and keeps its sockets.
 * T1  Two pictures at most are with each thread, one of them waiting: memory stays bounded whatever is sent.
 * T2  Threads start when there is something for them to do.
 * T3  A thread that dies (out of memory) fails its own work only, with what it died of, and is replaced.
 */
import { availableParallelism } from 'node:os'
import { Fault, type FaultCode } from '@frameloop/kit/fault'
import { Rooms } from '@frameloop/kit/rooms'
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

/** `program`: where the built thread lies. */
export function openPixelThreads(count = availableParallelism(), program = new URL('./pixel-thread.mjs', import.meta.url)): PixelThreads {
  const pool = new Piscina({ filename: program.href, minThreads: 0, maxThreads: count, idleTimeout: 600_000, concurrentTasksPerWorker: 2, atomics: 'disabled' })
  const rooms = new Rooms()
  /** Whoever sends bytes keeps them: a thread gets a copy. */
  const ask = async <Result extends object>(name: string, bytes: Uint8Array, more: readonly unknown[]): Promise<Result> => {
    const own = rooms.take(bytes.length)
    own.set(bytes)
    const { result, room } = (await pool.run([own, ...more], { name, transferList: [own.buffer] })) as Answered<Result>
    rooms.give(room)
    return resultOf(result)
  }
  return {
    look: (bytes) => ask<PictureLook>('look', bytes, []),
    prepare: (bytes, zones, references) => ask<PreparedPicture>('prepare', bytes, [zones, references]),
    close: () => pool.destroy(),
  }
}
