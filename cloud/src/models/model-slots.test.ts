import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Fault } from '@frameloop/kit/fault'
import { openLog } from '@frameloop/kit/log'
import { until } from '@frameloop/kit/retry'
import type { ModelChanged } from '@frameloop/schemas/events'
import { afterAll, expect, test } from 'vitest'
import type { Mlflow } from './mlflow.ts'
import { type ModelFiles, modelFileNames } from './model-files.ts'
import { ModelSlots, placeOf } from './model-slots.ts'

const folder = mkdtempSync(join(tmpdir(), 'frameloop-slots-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** Slots whose models are digests only; `loaded` are those that have not been let go. */
function open() {
  const loaded = new Set<string>()
  let isAway = false
  let arrive = (): void => {}
  const held = new Promise<void>((resolve) => {
    arrive = resolve
  })
  const mlflow = {
    async getFiles(artifactPath: string) {
      if (artifactPath === 'hangs') await held
      if (isAway) throw new Fault('MLFLOW_UNAVAILABLE', 'MLflow is away')
      return new Map(modelFileNames.map((name) => [name, Buffer.from('{}')]))
    },
  } as unknown as Mlflow
  const loader = {
    async load(digest: string, files: ModelFiles) {
      if (digest === 'broken' || files.get('meta.json')?.toString() !== '{}') throw new Fault('MODEL_INVALID', 'broken')
      loaded.add(digest)
      return { meta: {}, engine: 'onnxruntime', why: '' } as never
    },
    async unload(digest: string) {
      loaded.delete(digest)
    },
  }
  const slots = new ModelSlots(mlflow, folder, loader, openLog('test', 'silent'))
  const apply = (alias: string, version: string, share = 1, digest = `d${version}`): Promise<void> =>
    slots.apply({ task: 't', alias, version, share, digest, artifactPath: digest } as ModelChanged, AbortSignal.timeout(5_000))
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
  const away = (is: boolean): void => {
    isAway = is
  }
  return { slots, apply, loaded, all, versions, away, arrive: () => arrive() }
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

test('files that do not come hold up no other change, and come too late for one that was taken back', async () => {
  const { apply, loaded, all, versions, arrive } = open()
  await apply('champion', '1')
  const late = apply('champion', '2', 1, 'hangs')
  await apply('challenger', '3', 1)
  // rolled back meanwhile
  await apply('champion', '1')
  expect(versions(all[0] ?? '', (version) => version !== '3')).toEqual(['1'])
  arrive()
  await late
  expect(versions(all[0] ?? '', (version) => version !== '3')).toEqual(['1'])
  expect([...loaded]).toEqual(['d1', 'd3'])
})

test('of what was once decided only the latest of each task and alias counts', () => {
  const change = (task: string, alias: string, version: string) => ({ task, alias, version }) as ModelChanged
  const changes = [change('t', 'champion', '1'), change('t', 'champion', '2'), change('u', 'champion', '1'), change('t', 'champion', '1'), change('t', 'shadow', '')]
  expect(ModelSlots.latest(changes).map(({ task, alias, version }) => `${task} ${alias} ${version}`)).toEqual(['t champion 1', 'u champion 1', 't shadow '])
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

test('a version whose files cannot be fetched serves as soon as MLflow is back, unless another one is wanted by then', async () => {
  const { slots, apply, loaded, away } = open()
  await apply('champion', 'early')
  away(true)
  await apply('champion', 'late')
  await apply('shadow', 'never')
  expect([slots.of('t')?.change.version, slots.waiting.map(({ version }) => version)]).toEqual(['early', ['late', 'never']])
  away(false)
  await apply('shadow', 'other')
  const stop = new AbortController()
  const running = slots.run(stop.signal, 5)
  expect(await until(() => slots.of('t')?.change.version === 'late' || undefined, 5_000, 5)).toBe(true)
  stop.abort()
  await running
  expect([slots.waiting, [...loaded].sort()]).toEqual([[], ['dlate', 'dother']])
}, 20_000)

test('kept files that were cut off are fetched anew', async () => {
  const first = open()
  await first.apply('champion', 'kept')
  writeFileSync(join(folder, 'dkept', 'meta.json'), '{')
  const second = open()
  await second.apply('champion', 'kept')
  expect(second.slots.of('t')?.change.version).toBe('kept')
})
