/** A closed loop of HTTP requests by `wrk` (Debian): written in C, it leaves more of the cores to the server than a client in Node. */
import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

/** The bytes of a POST. */
export function requestBytes(port: number, path: string, headers: Readonly<Record<string, string>>, body: Uint8Array): Buffer {
  const all = { host: `127.0.0.1:${port}`, 'content-length': String(body.length), ...headers }
  const head = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`)
  return Buffer.concat([Buffer.from(`POST ${path} HTTP/1.1\r\n${head.join('')}\r\n`), body])
}

export interface Loaded {
  readonly perSecond: number
  readonly p99: number
  readonly answered: number
}

/** Each connection sends its next request when the last one is answered. Throws on any answer but 2xx. */
export async function closedLoop(port: number, requests: readonly Buffer[], connections: number, seconds: number): Promise<Loaded> {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-load-'))
  try {
    const files = requests.map((bytes, at) => {
      writeFileSync(join(folder, String(at)), bytes)
      return join(folder, String(at))
    })
    const script = fileURLToPath(new URL('load.lua', import.meta.url))
    const settings = ['--threads', '1', '--connections', String(connections), '--duration', `${seconds}s`, '--script', script, `http://127.0.0.1:${port}`]
    const { stdout } = await promisify(execFile)('wrk', [...settings, '--', ...files]).catch((thrown: { code?: unknown }) => {
      throw thrown.code === 'ENOENT' ? new Error('wrk makes the load and is not there: apt-get install wrk') : thrown
    })
    const { answered, failed, seconds: took, p99 } = JSON.parse(/^\{.*\}$/m.exec(stdout)?.[0] ?? '') as Record<'answered' | 'failed' | 'seconds' | 'p99', number>
    if (failed > 0 || answered === 0) throw new Error(`${failed} of ${answered + failed} requests failed:\n${stdout}`)
    return { perSecond: answered / took, p99, answered }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
