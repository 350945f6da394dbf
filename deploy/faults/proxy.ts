/** A TCP proxy that goes wrong on demand: what stands between a program and a broker or an object store on a bad day. */

import type { AddressInfo } from 'node:net'
import { connect, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Bytes, Ms } from '@frameloop/kit/units'

export type Trouble =
  | { readonly kind: 'none' }
  /** Every piece of data comes this much later, in both directions. */
  | { readonly kind: 'delay'; readonly ms: Ms }
  /** No more than so many bytes of answers a second go through a connection. */
  | { readonly kind: 'thin'; readonly bytesPerSecond: Bytes }
  /** Connections stay open, new ones are taken, and nothing goes through. */
  | { readonly kind: 'black hole' }
  /** A connection is reset once so many bytes of answers, or of requests, have gone through since the trouble began. */
  | { readonly kind: 'cut'; readonly of: 'answers' | 'requests'; readonly after: Bytes }
  /** What is asked is done, and its answer is lost with the connection. */
  | { readonly kind: 'answers lost' }
  /** HTTP only: refuses everything with this status. */
  | { readonly kind: 'refuse'; readonly status: number }
  /** Kafka only: requests of this kind are delivered so much later, even when the client is gone by then; others overtake them. */
  | { readonly kind: 'hold'; readonly apiKey: number; readonly clientId: RegExp; readonly ms: Ms }

/** Kafka's number of the request that ends a transaction (Kafka protocol guide, "API Keys"). */
export const endTxn = 26

export interface FaultProxy {
  readonly port: number
  trouble: Trouble
  /** How often it did something, since the start. */
  readonly fired: number
  close(): Promise<void>
}

/** The first whole Kafka request of the bytes, or undefined while it is not all there. */
function nextRequest(bytes: Buffer): { readonly frame: Buffer; readonly apiKey: number; readonly clientId: string } | undefined {
  if (bytes.length < 4) return undefined
  const end = 4 + bytes.readInt32BE(0)
  if (bytes.length < end) return undefined
  const idLength = bytes.readInt16BE(12)
  return { frame: bytes.subarray(0, end), apiKey: bytes.readInt16BE(4), clientId: idLength > 0 ? bytes.toString('utf8', 14, 14 + idLength) : '' }
}

const thinPiece: Bytes = 1_460

/** `upstream` is asked for each connection: the port may not be known at the start. */
export async function openProxy(protocol: 'kafka' | 'tcp', upstream: () => number): Promise<FaultProxy> {
  const sockets = new Set<Socket>()
  let fired = 0
  const proxy = {
    trouble: { kind: 'none' } as Trouble,
    get fired() {
      return fired
    },
  }
  const server = createServer((client) => {
    const origin = connect({ host: '127.0.0.1', port: upstream() })
    let waiting: Buffer = Buffer.alloc(0)
    let held = 0
    let count = { trouble: proxy.trouble, bytes: 0 }
    const cut = (): void => {
      fired += 1
      client.resetAndDestroy()
      origin.destroy()
    }
    /** Passes a piece on, as the trouble of the moment has it. */
    const pass = async (to: Socket, direction: 'answers' | 'requests', piece: Buffer): Promise<void> => {
      const { trouble } = proxy
      if (count.trouble !== trouble) count = { trouble, bytes: 0 }
      if (trouble.kind === 'black hole') {
        fired += 1
        return
      }
      if (trouble.kind === 'answers lost' && direction === 'answers') {
        cut()
        return
      }
      if (trouble.kind === 'cut' && direction === trouble.of) {
        count.bytes += piece.length
        if (count.bytes > trouble.after) {
          to.write(piece.subarray(0, Math.max(0, piece.length - (count.bytes - trouble.after))), () => cut())
          return
        }
      }
      if (trouble.kind === 'thin' && direction === 'answers') {
        fired += 1
        origin.pause()
        for (let at = 0; at < piece.length && to.writable; at += thinPiece) {
          to.write(piece.subarray(at, at + thinPiece))
          await sleep((thinPiece / trouble.bytesPerSecond) * 1000)
        }
        origin.resume()
        return
      }
      if (trouble.kind === 'delay') {
        fired += 1
        setTimeout(() => to.writable && to.write(piece), trouble.ms)
        return
      }
      to.write(piece)
    }
    client.on('data', (piece) => {
      const { trouble } = proxy
      if (trouble.kind === 'refuse') {
        fired += 1
        client.end(`HTTP/1.1 ${trouble.status} Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`)
        origin.destroy()
        return
      }
      if (protocol === 'tcp') {
        void pass(origin, 'requests', piece)
        return
      }
      waiting = Buffer.concat([waiting, piece])
      for (let request = nextRequest(waiting); request; request = nextRequest(waiting)) {
        const frame = Buffer.from(request.frame)
        waiting = waiting.subarray(frame.length)
        if (trouble.kind === 'hold' && request.apiKey === trouble.apiKey && trouble.clientId.test(request.clientId)) {
          fired += 1
          held += 1
          setTimeout(() => {
            held -= 1
            if (origin.writable) origin.write(frame)
          }, trouble.ms)
        } else void pass(origin, 'requests', frame)
      }
    })
    origin.on('data', (piece) => void (client.destroyed || pass(client, 'answers', piece)))
    for (const socket of [client, origin]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => sockets.delete(socket))
    }
    // what is held reaches the broker all the same
    client.on('close', () => (held > 0 ? undefined : origin.end()))
    origin.on('close', () => client.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return Object.assign(proxy, {
    port: (server.address() as AddressInfo).port,
    async close() {
      for (const socket of sockets) socket.destroy()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  })
}
