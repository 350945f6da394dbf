/** How far this machine's clock is from that of a server, as its answers say (RFC 9110, "Date"). */
import type { Ms } from '@frameloop/kit/units'

/** Positive: ours is ahead. Undefined where no server told its time. Right to a second. */
export async function clockSkew(urls: readonly string[]): Promise<{ readonly skew: Ms; readonly host: string } | undefined> {
  for (const url of urls) {
    const response = await fetch(url, { signal: AbortSignal.timeout(5_000) }).catch(() => undefined)
    await response?.body?.cancel().catch(() => {})
    const date = Date.parse(response?.headers.get('date') ?? '')
    // the header has whole seconds
    if (!Number.isNaN(date)) return { skew: Date.now() - date - 500, host: new URL(url).host }
  }
  return undefined
}
