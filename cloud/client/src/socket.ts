/**
 * A WebSocket that comes back: what feeds and streams share.
 * S1  A connection that ends is opened anew, after a pause that grows from a quarter of a second to ten, with jitter.
 * S2  What a server refuses for good (a key it does not know) ends it with the reason, which a browser's socket does not say.
 */
import { bodyOf, FrameloopError } from './problem.ts'

/** Of a WebSocket, what is used here: those of browsers, of Node and of the package `ws` all have it. */
export interface SocketLike {
  binaryType: string
  send(data: string | Uint8Array<ArrayBuffer>): void
  close(): void
  // biome-ignore lint/suspicious/noExplicitAny: each platform has event types of its own
  addEventListener(kind: 'open' | 'message' | 'close' | 'error', listener: (event: any) => void): void
}
export type SocketClass = new (url: string) => SocketLike

export interface Access {
  /** Address of the server, without a path. */
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
  readonly Socket: SocketClass
}

const firstPause = 250
const longestPause = 10_000
/** A connection that held for so long was a good one. */
const settled = 5_000

/** How long to wait before the n-th attempt, in milliseconds; `random` from 0 to 1. */
export function pauseBefore(attempt: number, random: number): number {
  return Math.min(longestPause, firstPause * 2 ** (attempt - 1)) * (0.5 + random / 2)
}

export interface Handlers {
  /** `interrupt`: gives this connection up, as if it had broken. */
  readonly onOpen: (send: (data: string | Uint8Array<ArrayBuffer>) => void, interrupt: () => void) => void
  readonly onText: (text: string) => void
  readonly onBytes: (bytes: Uint8Array<ArrayBuffer>) => void
  /** It is away; another attempt follows unless `error` says why there will be none. */
  readonly onAway: (error: Error | undefined) => void
}

/** S2: a browser cannot send a header with a WebSocket; a ticket stands for the key. */
async function addressOf({ url, headers }: Access, path: string): Promise<string> {
  const address = `${url.replace(/^http/, 'ws')}${path}`
  if (!headers['authorization']) return address
  const { ticket } = await bodyOf<{ ticket: string }>(await fetch(`${url}/v1/tickets`, { method: 'POST', headers }))
  return `${address}?ticket=${encodeURIComponent(ticket)}`
}

const isForGood = (thrown: unknown): thrown is FrameloopError => thrown instanceof FrameloopError && thrown.status >= 400 && thrown.status < 500 && thrown.status !== 429

/** Opens it and keeps it open until the function that is returned is called. */
export function keepOpen(access: Access, path: string, { onOpen, onText, onBytes, onAway }: Handlers): () => void {
  let isEnded = false
  let attempt = 0
  let socket: SocketLike | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  const again = (error?: unknown): void => {
    if (isEnded) return
    if (isForGood(error)) {
      isEnded = true
      onAway(error)
      return
    }
    onAway(undefined)
    attempt += 1
    timer = setTimeout(() => void open(), pauseBefore(attempt, Math.random()))
  }
  const open = async (): Promise<void> => {
    let wasOpen = false
    try {
      const address = await addressOf(access, path)
      if (isEnded) return
      socket = new access.Socket(address)
    } catch (thrown) {
      again(thrown)
      return
    }
    const own = socket
    own.binaryType = 'arraybuffer'
    let good: ReturnType<typeof setTimeout> | undefined
    own.addEventListener('open', () => {
      wasOpen = true
      good = setTimeout(() => {
        attempt = 0
      }, settled)
      if (!isEnded)
        onOpen(
          (data) => own.send(data),
          () => own.close(),
        )
    })
    own.addEventListener('message', ({ data }: { readonly data: string | ArrayBuffer }) => {
      if (isEnded) return
      if (typeof data === 'string') onText(data)
      else onBytes(new Uint8Array(data))
    })
    // what comes after it says more
    own.addEventListener('error', () => {})
    own.addEventListener('close', () => {
      clearTimeout(good)
      if (wasOpen) again()
      else void whyRefused(access, path).then(again, again)
    })
  }
  void open()
  return () => {
    isEnded = true
    clearTimeout(timer)
    socket?.close()
  }
}

/** S2: the same question as a plain request. Who may ask it is told that there is nothing there but a WebSocket. */
async function whyRefused({ url, headers }: Access, path: string): Promise<undefined> {
  const response = await fetch(`${url}${path}`, { headers })
  if (response.status !== 404) await bodyOf(response)
}
