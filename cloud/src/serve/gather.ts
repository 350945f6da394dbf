/** The body of a picture as the pieces it came in: the engine puts them together on their way to a thread, so that it is copied once. */
import { errorCodes, type FastifyRequest } from 'fastify'

type Gathered = readonly Buffer[]

/** A parser of bodies. Refuses what is larger than the route takes by its length, before any of it is there, or where it passes the limit. */
export function gather(request: FastifyRequest, payload: NodeJS.ReadableStream, done: (error: Error | null, body?: Gathered) => void): void {
  const { bodyLimit } = request.routeOptions
  const pieces: Buffer[] = []
  let length = 0
  const end = (error?: Error): void => {
    payload.off('data', take).off('end', end).off('error', end)
    if (error) done(Object.assign(error, { statusCode: (error as { statusCode?: number }).statusCode ?? 400 }))
    else done(null, pieces)
  }
  const take = (piece: Buffer): void => {
    length += piece.length
    if (length > bodyLimit) end(new errorCodes.FST_ERR_CTP_BODY_TOO_LARGE())
    else pieces.push(piece)
  }
  if (Number(request.headers['content-length'] ?? 0) > bodyLimit) end(new errorCodes.FST_ERR_CTP_BODY_TOO_LARGE())
  else payload.on('data', take).once('end', end).once('error', end)
}

export const isGathered = (body: unknown): body is Gathered => Array.isArray(body) && body.every((piece) => Buffer.isBuffer(piece))
