/** What the spool does to a disk, in one place: so that tests can record it, and make it fail. */
import { closeSync, fdatasync, fsyncSync, ftruncateSync, openSync, rmSync, writev } from 'node:fs'
import { promisify } from 'node:util'
import type { Bytes } from '@frameloop/kit/units'

const write = promisify(writev)
const sync = promisify(fdatasync)

export interface Disk {
  /** A new file to append to. */
  create(path: string): number
  /** All of it or an error: a disk that fills up takes a part first, and says so only when asked again. */
  write(file: number, parts: readonly Buffer[]): Promise<void>
  sync(file: number): Promise<void>
  /** Takes off what lies behind `length`. */
  cut(file: number, length: Bytes): void
  /** So that the names in it are durable. */
  syncFolder(path: string): void
  remove(path: string): void
}

export const realDisk: Disk = {
  create: (path) => openSync(path, 'a', 0o600),
  async write(file, parts) {
    let rest = [...parts]
    while (rest.length > 0) {
      let { bytesWritten } = await write(file, rest)
      rest = rest.flatMap((part) => {
        const taken = Math.min(bytesWritten, part.length)
        bytesWritten -= taken
        return taken === part.length ? [] : [part.subarray(taken)]
      })
    }
  },
  sync: (file) => sync(file),
  cut: (file, length) => ftruncateSync(file, length),
  syncFolder(path) {
    const folder = openSync(path, 'r')
    try {
      fsyncSync(folder)
    } finally {
      closeSync(folder)
    }
  },
  remove: (path) => rmSync(path, { force: true }),
}
