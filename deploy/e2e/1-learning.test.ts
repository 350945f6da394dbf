/** Labels in, a model out, live answers: on real footage and on the simulated street. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { evaluate, type Judged } from '@frameloop/cloud/train/evaluate'
import { isCurrent } from '@frameloop/edge-agent/report'
import type { AgentReported } from '@frameloop/schemas/events'
import sharp from 'sharp'
import { afterAll, expect, test } from 'vitest'
import WebSocket from 'ws'
import { root } from '../src/home.ts'
import { parseLabels } from '../src/label-file.ts'
import { frameloop, home, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

const labelFile = join(root, 'deploy/e2e/footage/vtest-labels.csv')
const labels = parseLabels(readFileSync(labelFile, 'utf8'))

afterAll(() => pool.end())

interface Trained {
  readonly run: string
  readonly version: string
  readonly promoted: boolean
  readonly reason: string
  readonly dataset: string
}
const train = async (...args: string[]): Promise<Trained> => JSON.parse(await frameloop('train', 'pedestrians', '--camera', 'vtest', '--wait', '--json', ...args)) as Trained

test('labels of real footage are imported once, and wrong ones are told by line', async () => {
  expect(await frameloop('labels', 'import', labelFile, '--camera', 'vtest', '--task', 'pedestrians')).toContain(`${labels.length} stored`)
  expect(await frameloop('labels', 'import', labelFile, '--camera', 'vtest', '--task', 'pedestrians')).toContain(
    `0 stored (0 of them replace earlier ones), ${labels.length} unchanged`,
  )
  await expect(frameloop('labels', 'import', labelFile, '--camera', 'nowhere', '--task', 'pedestrians')).rejects.toThrow(
    /line 2: task pedestrians has no zone upper-left on camera nowhere/,
  )
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-labels-'))
  const file = join(folder, 'unknown.csv')
  writeFileSync(file, 'frame_id,zone,label\n00000000-0000-5000-8000-000000000000,upper-left,empty\n')
  await expect(frameloop('labels', 'import', file, '--camera', 'vtest', '--task', 'pedestrians')).rejects.toThrow(
    /line 2: no frame 00000000-0000-5000-8000-000000000000 of camera vtest is known/,
  )
  rmSync(folder, { recursive: true })
})

test('trained on 22.4 to 55.6 s, it judges the first 22.4 s of the street with at least 0.85 balanced accuracy', async () => {
  const trained = await train('--from-offset-ms', '22400', '--until-offset-ms', '55600', '--promote')
  expect(trained).toMatchObject({ promoted: true })
  const wanted = new Map(labels.filter(({ mediaOffsetMs }) => (mediaOffsetMs ?? 0) < 22_400).map(({ zone, mediaOffsetMs, label }) => [`${zone} ${mediaOffsetMs}`, label]))
  // the next pass of the footage is answered by this version
  const judged = await soon(async () => {
    const found = new Map<string, Judged>()
    for (const line of (await frameloop('predictions', 'export', '--camera', 'vtest', '--csv')).split('\n').slice(1)) {
      const [, , zone = '', , offset, , , answer = '', , version] = line.split(',')
      const truth = wanted.get(`${zone} ${Number(offset)}`)
      if (version === trained.version && truth) found.set(`${zone} ${offset}`, { zone, truth, answer })
    }
    return found.size >= wanted.size * 0.98 ? [...found.values()] : undefined
  })
  const { balancedAccuracy, perZone } = evaluate(judged)
  process.stdout.write(
    `vtest, unseen 0 to 22.4 s: balanced accuracy ${balancedAccuracy.toFixed(3)} on ${judged.length} answers (${Object.entries(perZone)
      .map(([zone, figures]) => `${zone} ${figures.balancedAccuracy.toFixed(3)}, always the majority ${figures.majorityAccuracy.toFixed(3)} accuracy`)
      .join('; ')})\n`,
  )
  expect(balancedAccuracy).toBeGreaterThanOrEqual(0.85)
})

test('flipping every label outside the training range leaves the dataset as it is', async () => {
  const range = ['--from-offset-ms', '22400', '--until-offset-ms', '55600']
  const before = await train(...range)
  await pool.query(
    "update labels set label = case label when 'empty' then 'occupied' else 'empty' end where camera_id = 'vtest' and not (media_offset_us >= 22400000 and media_offset_us < 55600000)",
  )
  expect((await train(...range)).dataset).toBe(before.dataset)
})

test('the simulated street closes the loop by itself, and is right about frames taken after its dataset was cut', async () => {
  const figures = await soon(async () => {
    const row = await one<{ n: number; balanced: number; majority: number }>(
      `with answered as (
         select l.label as truth, p.answer from predictions p
         join labels l on l.camera_id = p.camera_id and l.zone = p.zone and l.task = p.task and l.media_offset_us = p.media_offset_us and l.superseded_at is null
         join model_versions m on m.task = p.task and m.version = p.model_version
         where p.camera_id = 'street' and p.task = 'occupancy' and p.frame_at > m.cut_at)
       select count(*)::int as n,
         (avg((answer = truth)::int) filter (where truth = 'occupied') + avg((answer = truth)::int) filter (where truth = 'empty'))::float8 / 2 as balanced,
         greatest(avg((truth = 'occupied')::int), avg((truth = 'empty')::int))::float8 as majority
       from answered`,
    )
    return row && row.n >= 60 && row.balanced !== null ? row : undefined
  })
  process.stdout.write(
    `street, live after the cut: balanced accuracy ${figures.balanced.toFixed(3)} on ${figures.n} answers, always the majority ${figures.majority.toFixed(3)} accuracy\n`,
  )
  expect(figures.balanced).toBeGreaterThan(0.8)
})

test('live answers arrive on the WebSocket feed with model version and preprocessing digest', async () => {
  const socket = new WebSocket(`${(state.endpoints['serve'] ?? '').replace('http', 'ws')}/v1/feeds`)
  const answer = await new Promise<Record<string, unknown>>((resolve, reject) => {
    socket.on('open', () => socket.send(JSON.stringify({ cameras: ['vtest'] })))
    socket.on('message', (data: Buffer) => {
      const message = JSON.parse(data.toString('utf8')) as Record<string, unknown>
      if (message['kind'] === 'prediction' && message['cameraId'] === 'vtest') resolve(message)
    })
    socket.on('error', reject)
  })
  socket.close()
  expect(answer).toMatchObject({
    task: 'pedestrians',
    modelVersion: expect.stringMatching(/^\d+$/),
    preprocessing: expect.stringMatching(/^[0-9a-f]{16}$/),
    traceId: expect.stringMatching(/^[0-9a-f]{32}$/),
  })
})

test('a picture sent over HTTP gets the same answer as the live frame', async () => {
  const { objectStoreOf } = await import('@frameloop/kit/object-store')
  const store = objectStoreOf(state.environment)
  // when a champion is promoted between the two, they are asked anew
  const [live, sent] = await soon(async () => {
    const live = await one<{ zone: string; answer: string; confidence: number; model_version: string; bucket: string; object_key: string }>(
      "select p.zone, p.answer, p.confidence, p.model_version, f.bucket, f.object_key from predictions p join frames f using (frame_id) where p.camera_id = 'vtest' order by p.answered_at desc limit 1",
    )
    if (!live) return
    const picture = await store.get(live.bucket, live.object_key)
    const response = await fetch(`${state.endpoints['serve']}/v1/predict?camera=vtest`, {
      method: 'POST',
      headers: { 'content-type': 'image/jpeg' },
      body: new Uint8Array(picture),
    })
    const { answers } = (await response.json()) as { answers: { zone: string; answer: string; confidence: number; modelVersion: string }[] }
    const sent = answers.find(({ zone }) => zone === live.zone)
    return sent?.modelVersion === live.model_version ? ([live, sent] as const) : undefined
  })
  store.close()
  expect(sent.answer).toBe(live.answer)
  expect(Math.abs(sent.confidence - live.confidence)).toBeLessThan(1e-4)
})

test('follow of an answered frame ends at the model, its MLflow run and its dataset', async () => {
  const { frame_id } = await soon(async () => one<{ frame_id: string }>("select frame_id from predictions where camera_id = 'vtest' order by answered_at desc limit 1"))
  const way = await frameloop('follow', frame_id)
  expect(way).toMatch(/predictions\.made +partition/)
  expect(way).toMatch(/frameloop-pedestrians version \d+: MLflow run [0-9a-f]{32}, dataset [0-9a-f]{64}/)
})

test('an earlier version is promoted by hand and rolled back, and answers follow without a restart', async () => {
  const serves = async (): Promise<string | undefined> => {
    const { models } = (await (await fetch(`${state.endpoints['serve']}/v1/models`)).json()) as { models: { task: string; version: string }[] }
    return models.find(({ task }) => task === 'pedestrians')?.version
  }
  const now = await soon(serves)
  const other =
    (await pool.query<{ version: string }>("select version from model_versions where task = 'pedestrians' and version <> $1 order by created_at limit 1", [now])).rows[0]
      ?.version ?? ''
  expect(await frameloop('models', 'promote', 'pedestrians', other, '--reason', 'a test', '--no-probation')).toContain(
    `version ${other} of pedestrians is champion now, version ${now} was`,
  )
  await soon(async () => ((await serves()) === other ? true : undefined))
  expect(JSON.parse(await frameloop('models', 'show', 'pedestrians', other))).toMatchObject({
    version: other,
    promotions: expect.arrayContaining([expect.objectContaining({ reason: 'a test' })]),
  })
  // the watcher may have had one trained meanwhile: whichever was champion before comes back
  const again = /version (\d+) of pedestrians is champion again, version \d+ was/.exec(await frameloop('models', 'rollback', 'pedestrians'))?.[1]
  expect(again).toBeDefined()
  await soon(async () => ((await serves()) === again ? true : undefined))
  await expect(frameloop('models', 'promote', 'pedestrians', '999')).rejects.toThrow(/Task pedestrians has no version 999; it has /)
})

test('an answer by one of two versions with the same weights is followed to the one that served', async () => {
  // trained on one dataset, before and after labels outside it were flipped
  const { versions } = await soon(async () =>
    one<{ versions: string[] }>("select array_agg(version order by created_at) as versions from model_versions where task = 'pedestrians' group by digest having count(*) > 1"),
  )
  const picture = await sharp({ create: { width: 64, height: 64, channels: 3, background: 'gray' } })
    .jpeg()
    .toBuffer()
  const ask = async () => {
    const response = await fetch(`${state.endpoints['serve']}/v1/models/pedestrians/predict`, {
      method: 'POST',
      headers: { 'content-type': 'image/jpeg' },
      body: new Uint8Array(picture),
    })
    return (await response.json()) as { modelVersion: string; traceId: string }
  }
  const { modelVersion: now } = await ask()
  const other = versions.find((version) => version !== now)
  for (const version of [other, versions.find((version) => version !== other)]) {
    await frameloop('models', 'promote', 'pedestrians', version ?? '', '--reason', 'a test', '--no-probation')
    const { traceId } = await soon(async () => {
      const answer = await ask()
      return answer.modelVersion === version ? answer : undefined
    })
    expect(await frameloop('follow', traceId)).toContain(`frameloop-pedestrians version ${version}: `)
  }
})

test('bad input over HTTP gets a problem document', async () => {
  const send = (path: string, body: string, type: string) =>
    fetch(`${state.endpoints['serve']}${path}`, { method: 'POST', headers: { 'content-type': type }, body }).then(
      async (response) => [response.status, (await response.json()) as Record<string, unknown>] as const,
    )
  expect(await send('/v1/predict?camera=vtest', 'no picture', 'image/jpeg')).toMatchObject([422, { code: 'PICTURE_UNREADABLE', hint: expect.any(String) }])
  expect(await send('/v1/predict?camera=nowhere', 'x', 'image/jpeg')).toMatchObject([404, { code: 'CAMERA_UNKNOWN' }])
  expect(await send('/v1/nothing', 'x', 'image/jpeg')).toMatchObject([404, { code: 'NOT_FOUND' }])
})

test('a camera that is wanted no more is let go while its agent runs, and the others go on', async () => {
  const { cameras } = JSON.parse(readFileSync(join(home, 'agent.yaml'), 'utf8')) as { readonly cameras: readonly { readonly id: string }[] }
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-wanted-'))
  const wanted = join(folder, 'street.json')
  // nothing behind this asks for new footage, which would keep the machine busy
  writeFileSync(wanted, JSON.stringify({ cameras: cameras.filter(({ id }) => id !== 'vtest') }))
  await frameloop('agents', 'set', 'agent-1', wanted, '--name', 'street-only')
  rmSync(folder, { recursive: true })
  const running = async (): Promise<readonly (readonly [string, string])[]> => {
    const reports = JSON.parse(await frameloop('agents', 'list', '--json')) as AgentReported[]
    return reports.flatMap(({ agentId, cameras: all }) => (agentId === 'agent-1' ? all.filter(isCurrent).map(({ cameraId, state: is }) => [cameraId, is] as const) : []))
  }
  await soon(async () => (JSON.stringify(await running()) === JSON.stringify([['street', 'streaming']]) ? true : undefined))
})
