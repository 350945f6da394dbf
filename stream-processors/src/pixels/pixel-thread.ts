/** The program of a thread that works on pixels; asked by `pixel-threads.ts`. */
import { getHeapStatistics, setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Fault } from '@frameloop/kit/fault'
import type { Bytes } from '@frameloop/kit/units'
import { move, transferableSymbol, valueSymbol } from 'piscina'
import type { Answered, Refused } from './pixel-threads.ts'
import { type PictureLook, type PixelWork, type PreparedPicture, pixelWork } from './pixel-work.ts'

type Asked = Uint8Array<ArrayBuffer>
type Tail<List extends readonly unknown[]> = List extends readonly [unknown, ...infer Rest] ? Rest : never

// nothing else makes V8 look for memory of libvips that nobody holds any more
setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void
/** A decoded picture may take 150 MB: several that nobody holds any more must not wait for the collector to come by. */
const uncollected: Bytes = 64_000_000

let last: Promise<unknown> = Promise.resolve()
/** What stays: reference pictures. */
let held: Bytes = 0

/** One picture at a time: libvips decodes in threads of its own. */
function inTurn<Result>(act: () => Promise<Result>): Promise<Result> {
  const mine = last.then(act)
  const tidy = (): void => {
    if (getHeapStatistics().external_memory < held + uncollected) return
    collect()
    held = getHeapStatistics().external_memory
  }
  last = mine.then(tidy, tidy)
  return mine
}

/** An error keeps its message on the way between threads and loses its code: what was thrown on purpose travels as data. */
async function answered<Result>(work: Promise<Result>): Promise<Result | Refused> {
  try {
    return await work
  } catch (thrown) {
    if (thrown instanceof Fault) return { refused: thrown.code, message: thrown.message }
    throw thrown
  }
}

/** Buffers change hands without a copy. */
const handing = <Result>(result: Result | Refused, { buffer }: Asked, buffers: readonly ArrayBufferLike[] = []): Answered<Result> =>
  move({ [transferableSymbol]: [buffer, ...buffers], [valueSymbol]: { result, room: buffer } }) as unknown as Answered<Result>

export async function look([bytes]: [Asked]): Promise<Answered<PictureLook>> {
  return handing(await inTurn(() => answered(pixelWork.look(bytes))), bytes)
}

export async function prepare([bytes, ...about]: [Asked, ...Tail<Parameters<PixelWork['prepare']>>]): Promise<Answered<PreparedPicture>> {
  const answer = await inTurn(() => answered(pixelWork.prepare(bytes, ...about)))
  return handing(answer, bytes, 'refused' in answer ? [] : answer.groups.map(({ packed }) => packed.buffer))
}
