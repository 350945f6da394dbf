import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openLog } from '@frameloop/kit/log'
import type { ModelChanged } from '@frameloop/schemas/events'
import { afterAll, expect, test } from 'vitest'
import type { Mlflow } from './mlflow.ts'
import { ModelSlots, placeOf } from './model-slots.ts'

const folder = mkdtempSync(join(tmpdir(), 'frameloop-slots-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Slots whose models are digests only; `loaded` are those that have not been let go. */
function open() {
  const loaded = new Set<string>()
  const mlflow = { getFiles: async () => new Map([['meta.json', Buffer.from('{}')]]) } as unknown as Mlflow
  const loader = {
    async load(digest: string) {
      if (digest === 'broken') throw new Error('broken')
      loaded.add(digest)
      return { meta: {}, engine: 'onnxruntime', why: '' } as never
    },
    async unload(digest: string) {
      loaded.delete(digest)
    },
  }
  const slots = new ModelSlots(mlflow, folder, loader, openLog('test', 'silent'))
  const apply = (alias: string, version: string, share = 1, digest = `d${version}`): Promise<void> =>
    slots.apply({ task: 't', alias, version, share, digest, artifactPath: '' } as ModelChanged, AbortSignal.timeout(5_000))
  const all = Array.from(
    { length: 1_000 },
    (_, at) =>
      `${Math.floor((at / 1_000) * 2 ** 32)
        .toString(16)
        .padStart(8, '0')}-0000-5000-8000-000000000000`,
  )
  /** Versions that answer a frame, in their order. */
  const versions = (frameId: string, fits = (_: string) => true): string[] =>
    slots.answering('t', frameId, ({ change }) => fits(change.version)).map(({ change }) => change.version)
  return { slots, apply, loaded, all, versions }
}

test('a challenger answers its share of the frames in place of the champion, each frame always the same way; a shadow answers all beside them', async () => {
  const { apply, all, versions } = open()
  await apply('champion', '1')
  await apply('challenger', '2', 0.25)
  await apply('shadow', '3')
  const first = all.map((frameId) => versions(frameId))
  expect(first.filter(([counts]) => counts === '2')).toHaveLength(250)
  expect(first.every((list) => list[1] === '3' && list.length === 2)).toBe(true)
  expect(all.map((frameId) => versions(frameId))).toEqual(first)
  expect(placeOf('80000000-0000-5000-8000-000000000000')).toBe(0.5)
})

test('a challenger that cannot answer a frame leaves it to the champion, and a shadow that is the champion answers once', async () => {
  const { apply, all, versions } = open()
  await apply('champion', '1')
  await apply('challenger', '2', 1)
  await apply('shadow', '1')
  expect(versions(all[0] ?? '', (version) => version !== '2')).toEqual(['1'])
  expect(versions(all[0] ?? '')).toEqual(['2', '1'])
})

test('who is retired answers no more and is let go, unless it serves elsewhere; a model that is refused changes nothing', async () => {
  const { slots, apply, loaded, all, versions } = open()
  await apply('champion', '1')
  await apply('challenger', '2', 1)
  await apply('shadow', '2')
  await apply('challenger', '')
  expect([versions(all[0] ?? ''), [...loaded]]).toEqual([
    ['1', '2'],
    ['d1', 'd2'],
  ])
  await apply('shadow', '')
  expect([versions(all[0] ?? ''), [...loaded]]).toEqual([['1'], ['d1']])
  await apply('champion', '9', 1, 'broken')
  expect(slots.of('t')?.change.version).toBe('1')
  // another share of the same version needs no loading
  await apply('challenger', '1', 0.5)
  await apply('challenger', '1', 0.7)
  expect(slots.all.find(({ change }) => change.alias === 'challenger')?.change.share).toBe(0.7)
})
