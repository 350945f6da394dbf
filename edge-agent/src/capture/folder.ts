/** A folder of pictures as a camera: what is there in the order of names, then what arrives. */
import { readdir, readFile, stat } from 'node:fs/promises'
import { extname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { jpegSize } from '@frameloop/kit/jpeg-header'
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

export function folderSource(settings: { readonly path: string; readonly framesPerSecond: number }): Source {
  const seen = new Set<string>()
  return {
    kind: 'folder',
    finishes: false,
    async *pictures(context, signal) {
      for (;;) {
        let names: string[]
        try {
          names = (await readdir(settings.path)).sort()
        } catch (thrown) {
          throw new SourceFailure('wrong', `the folder ${settings.path} cannot be read`, thrown)
        }
        // what has left the folder need not be remembered; one that is empty may be a disk that is unplugged
        const there = new Set(names)
        if (names.length > 0) for (const name of seen) if (!there.has(name)) seen.delete(name)
        for (const name of names) {
          const kind = kinds[extname(name).toLowerCase()]
          const path = join(settings.path, name)
          if (!kind || seen.has(name)) continue
          // a link that leads nowhere, a file without rights: told once, and the others go on
          const about = await stat(path).catch((thrown: unknown) => {
            seen.add(name)
            context.say(`${name} cannot be read: ${(thrown as Error).message}`)
          })
          if (!about) continue
          // a file that was touched within the last second may still be written
          if (!about.isFile() || Date.now() - about.mtimeMs < 1_000) continue
          seen.add(name)
          const bytes = await readFile(path).catch((thrown: unknown) => context.say(`${name} cannot be read: ${(thrown as Error).message}`))
          if (!bytes) continue
          yield {
            bytes,
            ...kind,
            capturedAt: Math.round(about.mtimeMs),
            ...(kind.extension === 'jpg' ? jpegSize(bytes) : { width: 0, height: 0 }),
            sourceName: name,
            newPass: false,
          }
          await sleep(1000 / settings.framesPerSecond, undefined, { signal })
        }
        await sleep(500, undefined, { signal })
      }
    },
  }
}
