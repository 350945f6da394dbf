/** HTTP with the login that cameras ask for: none, Basic (RFC 7617) or Digest (RFC 7616, MD5 and SHA-256). */
import { createHash, randomBytes } from 'node:crypto'

export interface Login {
  readonly username: string
  readonly password: string
}

/** `Digest realm="x", nonce="y"` → its parts. */
export function readChallenge(header: string): Readonly<Record<string, string>> {
  return Object.fromEntries([...header.matchAll(/(\w+)=(?:"([^"]*)"|([^\s,]+))/g)].map(([, name = '', quoted, bare]) => [name.toLowerCase(), quoted ?? bare ?? '']))
}

/** The answer to a challenge; undefined when it asks for something that is not known here. */
export function answerChallenge(header: string, method: string, uri: string, { username, password }: Login, cnonce: string): string | undefined {
  if (/^basic\b/i.test(header)) return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  if (!/^digest\b/i.test(header)) return undefined
  const { realm = '', nonce = '', opaque, qop, algorithm = 'MD5' } = readChallenge(header)
  const algorithms: Readonly<Record<string, string>> = { md5: 'md5', 'sha-256': 'sha256' }
  const name = algorithms[algorithm.toLowerCase()]
  if (name === undefined) return undefined
  const hash = (text: string): string => createHash(name).update(text).digest('hex')
  const secret = hash(`${username}:${realm}:${password}`)
  const asked = hash(`${method}:${uri}`)
  const isAuth = qop?.split(',').some((one) => one.trim() === 'auth')
  const response = isAuth ? hash(`${secret}:${nonce}:00000001:${cnonce}:auth:${asked}`) : hash(`${secret}:${nonce}:${asked}`)
  return [
    `Digest username="${username}", realm="${realm}", nonce="${nonce}", uri="${uri}", algorithm=${algorithm}, response="${response}"`,
    ...(opaque === undefined ? [] : [`opaque="${opaque}"`]),
    ...(isAuth ? [`qop=auth, nc=00000001, cnonce="${cnonce}"`] : []),
  ].join(', ')
}

/** GET, answering one challenge. */
export async function fetchWithLogin(url: URL, login: Login | undefined, signal: AbortSignal): Promise<Response> {
  const first = await fetch(url, { signal, redirect: 'follow' })
  const challenge = first.headers.get('www-authenticate')
  if (first.status !== 401 || !login || !challenge) return first
  await first.body?.cancel()
  // several challenges may stand in one header: the stronger one is answered
  const one = /digest .*/i.exec(challenge)?.[0] ?? challenge
  const authorization = answerChallenge(one, 'GET', `${url.pathname}${url.search}`, login, randomBytes(8).toString('hex'))
  return authorization === undefined ? first : fetch(url, { signal, headers: { authorization } })
}
