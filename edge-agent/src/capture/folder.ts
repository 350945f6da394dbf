/**
 * A folder of pictures as a camera: what is there in the order of names, then what arrives.
 * D1  A file is taken when it is whole: while somebody writes to it, it changes from one look to the next.
 * D2  What was taken is written down beside the spool, so that a restart does not take it again; what could not be read is
 *     tried again with each look.
 */
import { appendFile, mkdir, readdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { dirname, extname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { jpegSize } from '@frameloop/kit/jpeg-header'
import type { Ms } from '@frameloop/kit/units'
import { type Source, SourceFailure } from './source.ts'

const kinds: Readonly<Record<string, { readonly extension: string; readonly kind: 'image' | 'clip' }>> = {
  '.jpg': { extension: 'jpg', kind: 'image' },
  '.jpeg': { extension: 'jpg', kind: 'image' },
  '.png': { extension: 'png', kind: 'image' },
  '.webp': { extension: 'webp', kind: 'image' },
  '.mp4': { extension: 'mp4', kind: 'clip' },
  '.mkv': { extension: 'mkv', kind: 'clip' },
  '.avi': { extension: 'avi', kind: 'clip' },
}

const lookInterval: Ms = 500
/** An upload may pause, and a file that nobody has touched for longer is whole. */
const settleTime: Ms = 3_000

/** Files that were taken, by name and what they were then: another file of the same name is another one. */
class Taken {
  /** Undefined: remembered for as long as this lives. */
  readonly #file: string | undefined
  readonly #marks = new Map<string, string>()
  /** Of the file, with those that others have followed. */
  #lines = 0

  private constructor(file: string | undefined) {
    this.#file = file
  }

  static async read(file: string | undefined): Promise<Taken> {
    const taken = new Taken(file)
    if (file === undefined) return taken
    const text = await readFile(file, 'utf8').catch((thrown: NodeJS.ErrnoException) => {
      if (thrown.code === 'ENOENT') return ''
      throw thrown
    })
    for (const line of text.split('\n')) {
      const at = line.indexOf(' ')
      if (at <= 0) continue
      taken.#marks.set(line.slice(at + 1), line.slice(0, at))
      taken.#lines += 1
    }
    return taken
  }

  has(name: string, mark: string): boolean {
    return this.#marks.get(name) === mark
  }

  async add(name: string, mark: string): Promise<void> {
    this.#marks.set(name, mark)
    if (this.#file === undefined) return
    await mkdir(dirname(this.#file), { recursive: true })
    await appendFile(this.#file, `${mark} ${name}\n`, { mode: 0o600 })
    this.#lines += 1
    // one name that is written over and over
    if (this.#lines > 2 * this.#marks.size + 1_000) await this.#rewrite(this.#file)
  }

  async #rewrite(file: string): Promise<void> {
    await writeFile(`${file}.part`, [...this.#marks].map(([name, mark]) => `${mark} ${name}\n`).join(''), { mode: 0o600 })
    await rename(`${file}.part`, file)
    this.#lines = this.#marks.size
  }

  /** What has left the folder need not be remembered. */
  async keep(there: ReadonlySet<string>): Promise<void> {
    const before = this.#marks.size
    for (const name of this.#marks.keys()) if (!there.has(name)) this.#marks.delete(name)
    if (this.#marks.size !== before && this.#file !== undefined) await this.#rewrite(this.#file)
  }
}

/** `memory`: the file that remembers what was taken, where something must. */
export function folderSource(settings: { readonly path: string; readonly framesPerSecond: number; readonly memory?: string }): Source {
  return {
    kind: 'folder',
    waits: true,
    finishes: false,
    async *pictures(context, signal) {
      const taken = await Taken.read(settings.memory)
      /** What files looked like when they were last seen to change, and when that was. */
      const changed = new Map<string, { readonly mark: string; readonly at: Ms }>()
      const unreadable = new Set<string>()
      const readable = (name: string): void => {
        if (unreadable.delete(name) && unreadable.size === 0) context.say('')
      }
      for (;;) {
        let names: string[]
        try {
          names = (await readdir(settings.path)).sort()
        } catch (thrown) {
          throw new SourceFailure('wrong', `the folder ${settings.path} cannot be read`, thrown)
        }
        const there = new Set(names)
        // one that is empty may be a disk that is unplugged
        if (names.length > 0) await taken.keep(there)
        for (const name of changed.keys()) if (!there.has(name)) changed.delete(name)
        for (const name of unreadable) if (!there.has(name)) readable(name)
        for (const name of names) {
          const kind = kinds[extname(name).toLowerCase()]
          // a line break would end the line that remembers it
          if (!kind || name.includes('\n')) continue
          const path = join(settings.path, name)
          // a link that leads nowhere, a file without rights: told once, and the others go on
          const failed = (thrown: unknown): void => {
            if (!unreadable.has(name)) context.log.warn({ err: thrown, name }, 'a file of the folder cannot be read')
            unreadable.add(name)
            context.say(`${name} cannot be read: ${(thrown as Error).message}`)
          }
          const about = await stat(path).catch(failed)
          if (!about?.isFile()) continue
          const mark = `${about.size}-${Math.round(about.mtimeMs)}`
          if (taken.has(name, mark)) continue
          const before = changed.get(name)
          const age = Date.now() - about.mtimeMs
          if (before?.mark !== mark) changed.set(name, { mark, at: performance.now() })
          // one of yesterday is taken at once; a time that is still to come says nothing
          const isWhole = age >= settleTime || (before?.mark === mark && performance.now() - before.at >= settleTime)
          if (!isWhole) continue
          const bytes = await readFile(path).catch(failed)
          if (!bytes) continue
          readable(name)
          yield {
            bytes,
            ...kind,
            capturedAt: Math.round(about.mtimeMs),
            ...(kind.extension === 'jpg' ? jpegSize(bytes) : { width: 0, height: 0 }),
            sourceName: name,
            newPass: false,
          }
          // whoever asks for the next one has kept this one
          await taken.add(name, mark)
          changed.delete(name)
          await sleep(1000 / settings.framesPerSecond, undefined, { signal })
        }
        await sleep(lookInterval, undefined, { signal })
      }
    },
  }
}
