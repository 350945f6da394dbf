/** Progress of long work: a bar on a terminal, a line every few seconds otherwise; on stderr, so that results can be piped. */
import { showMs } from '@frameloop/kit/units'

export interface Progress {
  (done: number, total: number, note?: string): void
  readonly end: () => void
}

export function progressOf(): Progress {
  const since = Date.now()
  let told = Date.now()
  const show = (done: number, total: number, note = ''): void => {
    const share = total === 0 ? 1 : done / total
    const left = share > 0.02 && share < 1 ? `, ${showMs(((Date.now() - since) / share) * (1 - share))} left` : ''
    const text = `${(share * 100).toFixed(0).padStart(3)} %${note ? `  ${note}` : ''}${left}`
    if (process.stderr.isTTY) process.stderr.write(`\r${'█'.repeat(Math.round(share * 30)).padEnd(30, '·')} ${text.padEnd(40)}`)
    else if (Date.now() - told > 3_000) {
      told = Date.now()
      process.stderr.write(`${text.trim()}\n`)
    }
  }
  return Object.assign(show, { end: () => void (process.stderr.isTTY && process.stderr.write('\n')) })
}
