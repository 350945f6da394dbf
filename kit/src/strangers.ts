/** Who asks over HTTP that should not: pages of others, in the browser of somebody who may. */
import type { IncomingHttpHeaders } from 'node:http'
import { isIP } from 'node:net'

/**
 * Whether a page of another address asks, through the browser of somebody who may: on loopback or inside a network no key is
 * asked for, and being there must not be enough for whatever page is looked at there.
 */
export function isForeign({ origin, host, authorization, 'x-forwarded-host': forwarded }: IncomingHttpHeaders, allowed: readonly string[]): boolean {
  if (origin === undefined || authorization !== undefined || allowed.includes(origin)) return false
  return !URL.canParse(origin) || ![host, forwarded].includes(new URL(origin).host)
}

/** Whether nobody but this machine can reach an address. */
export const isLoopback = (host: string): boolean => ['127.0.0.1', '::1', 'localhost'].includes(host)

/**
 * Whether a name leads here that is not ours: any page can let its own name lead to 127.0.0.1, and the browser then takes it
 * for the page's own server. Of importance where being on this machine is enough to ask.
 */
export function isStranger({ host = '' }: IncomingHttpHeaders, origins: readonly string[], names: readonly string[] = []): boolean {
  if (host === '' || !URL.canParse(`http://${host}`)) return host !== ''
  const { hostname } = new URL(`http://${host}`)
  const isOurs = hostname === 'localhost' || hostname.endsWith('.localhost') || isIP(hostname.replace(/^\[|\]$/g, '')) !== 0
  return !isOurs && !names.some((name) => name.toLowerCase() === hostname) && !origins.some((origin) => new URL(origin).host === host)
}
