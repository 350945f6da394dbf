/**
 * Work on pixels on all cores, while the main thread fetches, publishes and keeps its sockets.
 * T1  Two pictures at most are with each thread, one of them waiting: memory stays bounded whatever is sent.
 * T2  Threads start when there is something for them to do.
 * T3  A thread that dies (out of memory) fails its own work only, with what it died of, and is replaced.
 */
import { availableParallelism } from 'node:os'
import { Fault, type FaultCode } from '@frameloop/kit/fault'
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

/** A view may look at a part of a large buffer, and all of it would be sent along; a thread gets a buffer of its own. */
const owned = (bytes: Uint8Array): Uint8Array<ArrayBuffer> => new Uint8Array(bytes)

/** `program`: where the built thread lies. */
export function openPixelThreads(count = availableParallelism(), program = new URL('./pixel-thread.mjs', import.meta.url)): PixelThreads {
  const pool = new Piscina({ filename: program.href, minThreads: 0, maxThreads: count, idleTimeout: 600_000, concurrentTasksPerWorker: 2, atomics: 'disabled' })
  return {
    async look(bytes) {
      const own = owned(bytes)
      return resultOf<PictureLook>(await pool.run(own, { name: 'look', transferList: [own.buffer] }))
    },
    async prepare(bytes, zones, references) {
      const own = owned(bytes)
      return resultOf<PreparedPicture>(await pool.run([own, zones, references], { name: 'prepare', transferList: [own.buffer] }))
    },
    close: () => pool.destroy(),
  }
}
