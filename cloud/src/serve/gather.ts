/**
 * The body of a picture as the pieces it came in: the engine puts them together on their way to a thread, so that it is copied
 * once. What all bodies take that are still coming is bounded: whoever comes beyond that is told to come again.
 */
import { Fault } from '@frameloop/kit/fault'
import type { Bytes } from '@frameloop/kit/units'
import { errorCodes, type FastifyRequest } from 'fastify'

type Gathered = readonly Buffer[]

/** Of all bodies that are coming. */
const usualMost: Bytes = 256_000_000

/**
 * A parser of bodies. Refuses what is larger than the route takes by its length, before any of it is there, or where it passes
 * the limit (413), and what would make all of them larger than `most` (429).
 */
export function gathering(most = usualMost): (request: FastifyRequest, payload: NodeJS.ReadableStream, done: (error: Error | null, body?: Gathered) => void) => void {
  let coming: Bytes = 0
  return (request, payload, done) => {
    const { bodyLimit } = request.routeOptions
    const pieces: Buffer[] = []
    let length = 0
    const end = (error?: Error): void => {
      payload.off('data', take).off('end', end).off('error', end).off('close', broken)
      coming -= length
      if (error) done(error instanceof Fault ? error : Object.assign(error, { statusCode: (error as { statusCode?: number }).statusCode ?? 400 }))
      else done(null, pieces)
    }
    const broken = (): void => end(new Error('The body broke off'))
    const take = (piece: Buffer): void => {
      length += piece.length
      coming += piece.length
      if (length > bodyLimit) end(new errorCodes.FST_ERR_CTP_BODY_TOO_LARGE())
      else if (coming > most) end(new Fault('OVERLOADED', `Bodies of ${most / 1e6} MB are coming already`))
      else pieces.push(piece)
    }
    if (Number(request.headers['content-length'] ?? 0) > bodyLimit) end(new errorCodes.FST_ERR_CTP_BODY_TOO_LARGE())
    else payload.on('data', take).once('end', end).once('error', end).once('close', broken)
  }
}

export const isGathered = (body: unknown): body is Gathered => Array.isArray(body) && body.every((piece) => Buffer.isBuffer(piece))
