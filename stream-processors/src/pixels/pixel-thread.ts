/** The program of a thread that works on pixels; asked by `pixel-threads.ts`. */
import { Fault } from '@frameloop/kit/fault'
import { move, transferableSymbol, valueSymbol } from 'piscina'
import type { Refused } from './pixel-threads.ts'
import { type PictureLook, type PixelWork, type PreparedPicture, pixelWork } from './pixel-work.ts'

/** An error keeps its message on the way between threads and loses its code: what was thrown on purpose travels as data. */
async function answered<Result>(work: Promise<Result>): Promise<Result | Refused> {
  try {
    return await work
  } catch (thrown) {
    if (thrown instanceof Fault) return { refused: thrown.code, message: thrown.message }
    throw thrown
  }
}

export function look(bytes: Uint8Array): Promise<PictureLook | Refused> {
  return answered(pixelWork.look(bytes))
}

export async function prepare(question: Parameters<PixelWork['prepare']>): Promise<PreparedPicture | Refused> {
  const answer = await answered(pixelWork.prepare(...question))
  if ('refused' in answer) return answer
  // prepared pixels change hands without a copy
  return move({ [transferableSymbol]: answer.groups.map(({ packed }) => packed.buffer), [valueSymbol]: answer }) as unknown as PreparedPicture
}
