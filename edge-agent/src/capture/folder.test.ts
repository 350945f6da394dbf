import { appendFileSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLog } from '@frameloop/kit/log'
import { until } from '@frameloop/kit/retry'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { folderSource } from './folder.ts'

let home = ''
let path = ''
beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'frameloop-folder-'))
  path = mkdtempSync(join(home, 'pictures-'))
})
afterEach(() => rmSync(home, { recursive: true }))

const yesterday = new Date(Date.now() - 86_400_000)
function put(name: string, text: string, touched = yesterday): void {
  writeFileSync(join(path, name), text)
  utimesSync(join(path, name), touched, touched)
}

/** What it takes, until it is stopped. */
function watch() {
  const [said, taken]: [string[], string[]] = [[], []]
  const stop = new AbortController()
  const context = { log: openLog('test', 'silent'), ffmpeg: '', ffprobe: '', wantsGray: false, say: (text: string) => void said.push(text) }
  const watching = (async () => {
    for await (const { sourceName, bytes } of folderSource({ path, framesPerSecond: 1_000, memory: join(home, 'memories', 'a.taken') }).pictures(context, stop.signal))
      taken.push(`${sourceName} ${bytes.toString()}`)
  })().catch(() => {})
  return {
    said,
    taken,
    has: (count: number) => until(() => taken.length >= count || undefined, 10_000, 20),
    end: async () => {
      stop.abort()
      await watching
    },
  }
}

test('what is there comes in the order of names, and is not taken again after a restart, unless it is another file', async () => {
  put('b.png', 'b')
  put('a.png', 'a')
  put('notes.txt', 'no picture')
  const first = watch()
  expect(await first.has(2)).toBe(true)
  // the last one is written down when the next is asked for
  await until(() => undefined, 100, 20)
  await first.end()
  expect(first.taken).toEqual(['a.png a', 'b.png b'])
  put('b.png', 'bb')
  put('c.png', 'c')
  const second = watch()
  expect(await second.has(2)).toBe(true)
  await second.end()
  expect(second.taken).toEqual(['b.png bb', 'c.png c'])
})

test('a file that is still written to is taken when it is whole, also where its time is still to come', async () => {
  const watched = watch()
  put('new.png', '1', new Date())
  put('ahead.png', 'x', new Date(Date.now() + 86_400_000))
  for (let part = 2; part <= 8; part += 1) {
    await until(() => undefined, 500, 100)
    appendFileSync(join(path, 'new.png'), String(part))
  }
  expect(watched.taken.filter((name) => name.startsWith('new'))).toEqual([])
  expect(await watched.has(2)).toBe(true)
  await watched.end()
  expect(watched.taken.sort()).toEqual(['ahead.png x', 'new.png 12345678'])
}, 20_000)

test('a file that cannot be read is said, tried again, and taken when it can be', async () => {
  symlinkSync(join(home, 'later'), join(path, 'a.png'))
  put('b.png', 'b')
  const watched = watch()
  expect(await watched.has(1)).toBe(true)
  expect(watched.said.join()).toContain('a.png cannot be read')
  writeFileSync(join(home, 'later'), 'a')
  utimesSync(join(home, 'later'), yesterday, yesterday)
  expect(await watched.has(2)).toBe(true)
  await watched.end()
  expect(watched.taken).toEqual(['b.png b', 'a.png a'])
})
