/** One server, and how to ask it. */
import { type Feed, type FeedWish, openFeed } from './feed.ts'
import type { FrameAnswers, PictureAnswer, Problem, ServedModel } from './messages.ts'
import { bodyOf } from './problem.ts'
import type { Access, SocketClass } from './socket.ts'
import { openStream, type PredictionStream, type StreamOptions } from './stream.ts'

export interface ClientOptions {
  /** Address of the server, like `https://cameras.example.org`. In a browser: the page's own unless said. */
  readonly url?: string
  /** `fl_…`, where the server asks for one. */
  readonly key?: string
  /** Node before 22: the `WebSocket` of the package `ws`. */
  readonly WebSocket?: unknown
}

export interface Client {
  /** Live answers, until the loop over them is left. */
  feed(wish?: FeedWish): Feed
  /** Predictions over one connection, for many pictures. */
  stream(task: string, options?: StreamOptions): PredictionStream
  /** About the zones of a camera's picture (JPEG, PNG, WebP). */
  predict(picture: Blob | Uint8Array<ArrayBuffer>, of: { readonly camera: string; readonly task?: string }): Promise<FrameAnswers>
  /** About a picture that shows nothing but what is asked about. `version`: one that is loaded, or its alias; the champion when absent. */
  classify(
    picture: Blob | Uint8Array<ArrayBuffer>,
    of: { readonly task: string; readonly camera?: string; readonly zone?: string; readonly version?: string },
  ): Promise<PictureAnswer>
  /** About frames of the catalog, at most 64; each has its answers or its problem. */
  predictFrames(frameIds: readonly string[], task?: string): Promise<readonly (FrameAnswers | Problem)[]>
  models(): Promise<readonly ServedModel[]>
}

/** The first bytes say what it is; a `Blob` may know itself. */
function contentTypeOf(picture: Blob | Uint8Array): string {
  if (picture instanceof Blob) return picture.type || 'application/octet-stream'
  return picture[0] === 0x89 ? 'image/png' : picture[0] === 0x52 ? 'image/webp' : 'image/jpeg'
}

const queryOf = (values: Readonly<Record<string, string | undefined>>): string => {
  const known = Object.entries(values).filter((entry): entry is [string, string] => entry[1] !== undefined)
  return known.length === 0 ? '' : `?${new URLSearchParams(known)}`
}

/** Connects to nothing yet; throws when the platform has no WebSocket and none was passed. */
export function connectTo({ url = (globalThis as { location?: { origin: string } }).location?.origin ?? '', key, WebSocket }: ClientOptions = {}): Client {
  const Socket = (WebSocket ?? (globalThis as { WebSocket?: unknown }).WebSocket) as SocketClass | undefined
  if (!Socket) throw new Error('There is no WebSocket here: pass the one of the package ws, connectTo({ url, WebSocket })')
  if (!/^https?:\/\//.test(url)) throw new Error(`A server's address begins with http:// or https://, like http://localhost:8080; this is ${url || 'empty'}`)
  const access: Access = { url: url.replace(/\/+$/, ''), headers: key ? { authorization: `Bearer ${key}` } : {}, Socket }
  const post = async <Body>(path: string, body: Blob | Uint8Array<ArrayBuffer> | string, contentType: string): Promise<Body> =>
    bodyOf(await fetch(`${access.url}${path}`, { method: 'POST', headers: { ...access.headers, 'content-type': contentType }, body }))
  return {
    feed: (wish = {}) => openFeed(access, wish),
    stream: (task, options = {}) => openStream(access, task, options),
    predict: (picture, { camera, task }) => post(`/v1/predict${queryOf({ camera, task })}`, picture, contentTypeOf(picture)),
    classify: (picture, { task, camera, zone, version }) =>
      post(`/v1/models/${encodeURIComponent(task)}/predict${queryOf({ camera, zone, version })}`, picture, contentTypeOf(picture)),
    predictFrames: async (frameIds, task) => {
      const { answers } = await post<{ answers: (FrameAnswers | Problem)[] }>('/v1/predict', JSON.stringify({ frameIds, ...(task ? { task } : {}) }), 'application/json')
      return answers
    },
    models: async () => (await bodyOf<{ models: ServedModel[] }>(await fetch(`${access.url}/v1/models`, { headers: access.headers }))).models,
  }
}
