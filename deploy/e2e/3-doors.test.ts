/** What others use: the ingest API, the page, and the watcher that closes the loop. */

import { chromium } from 'playwright-core'
import sharp from 'sharp'
import { afterAll, expect, test } from 'vitest'
import { frameloop, one, pool, state } from './session.ts'
import { soon } from './waiting.ts'

afterAll(() => pool.end())

const ingest = `${state.endpoints['ingest']}/v1/media`
const send = async (query: string, body: Uint8Array | string, headers: Record<string, string> = {}) => {
  const response = await fetch(`${ingest}?${query}`, { method: 'POST', headers: { 'content-type': 'image/jpeg', ...headers }, body: body as never })
  return [response.status, (await response.json()) as Record<string, unknown>] as const
}
const picture = (shade: number): Promise<Buffer> =>
  sharp({ create: { width: 64, height: 48, channels: 3, background: { r: shade, g: 90, b: 40 } } })
    .jpeg()
    .toBuffer()

test('an upload goes the way of every frame, once per Idempotency-Key', async () => {
  const body = await picture(10)
  const [status, first] = await send('source=phone&capturedAt=2026-11-24T10:00:00Z', body, { 'idempotency-key': 'one' })
  expect([status, first]).toMatchObject([201, { seq: 1, repeated: false }])
  expect(await send('source=phone&capturedAt=2026-11-24T10:00:00Z', body, { 'idempotency-key': 'one' })).toMatchObject([200, { mediaId: first['mediaId'], repeated: true }])
  expect(await send('source=phone', await picture(200), { 'idempotency-key': 'one' })).toMatchObject([409, { code: 'UPLOAD_CONFLICT' }])
  await soon(async () => one('select 1 as ok from features where frame_id = $1', [first['frameId']]))
  expect(await frameloop('follow', String(first['mediaId']))).toContain('features.prepared')
  expect(await one('select count(*)::int as n from media where camera_id = $1', ['phone'])).toEqual({ n: 1 })
})

test.each([
  ['a text file named .jpg', () => Promise.resolve('no picture' as string | Buffer), 'source=phone', 400, 'UPLOAD_INVALID'],
  [
    'a picture cut in half',
    async () => {
      const whole = await picture(1)
      return whole.subarray(0, whole.length / 2)
    },
    'source=phone',
    422,
    'PICTURE_UNREADABLE',
  ],
  ['a capture time that is none', () => picture(1), 'source=phone&capturedAt=yesterday', 400, 'UPLOAD_INVALID'],
  ['a source that is no name', () => picture(1), 'source=..%2Fx', 400, 'FST_ERR_VALIDATION'],
])('%s gets a problem document and leaves nothing behind', async (_, make, query, status, code) => {
  const before = await one('select count(*)::int as n from uploads')
  expect(await send(query, (await make()) as string)).toMatchObject([status, { code, hint: expect.any(String) }])
  expect(await one('select count(*)::int as n from uploads')).toEqual(before)
})

test('a clip uploaded gives its frames with their times', async () => {
  const { execFile } = await import('node:child_process')
  const { promisify } = await import('node:util')
  const { stdout } = await promisify(execFile)('ffmpeg', ['-v', 'error', '-f', 'lavfi', '-i', 'testsrc=size=128x96:rate=10:duration=2', '-f', 'matroska', '-'], {
    encoding: 'buffer',
    maxBuffer: 10_000_000,
  })
  const [status, accepted] = await send('source=phone&capturedAt=2026-11-24T11:00:00Z', stdout, { 'content-type': 'video/x-matroska' })
  expect(status).toBe(201)
  const frames = await soon(async () => {
    const { rows } = await pool.query<{ frame_index: number; frame_at: Date }>(
      'select frame_index, frame_at from frames where media_id = $1 and status_rank = 3 order by frame_index',
      [accepted['mediaId']],
    )
    return rows.length >= 4 ? rows : undefined
  })
  expect(frames.map(({ frame_at }) => frame_at.getTime() - Date.parse('2026-11-24T11:00:00Z'))).toEqual([0, 500, 1000, 1500])
})

test('the page shows cameras with live answers, in a real browser', async () => {
  const browser = await chromium.launch({ executablePath: process.env['CHROMIUM'] ?? '/usr/bin/chromium', args: ['--no-sandbox'] })
  try {
    const page = await browser.newPage()
    const errors: string[] = []
    page.on('pageerror', (error) => errors.push(error.message))
    await page.goto(state.console)
    await page.waitForSelector('.camera .zone span', { timeout: 150_000 })
    await page.waitForFunction("[...document.querySelectorAll('.camera img')].some((image) => image.naturalWidth > 0)", undefined, { timeout: 30_000 })
    expect(await page.locator('.way li').count()).toBe(6)
    expect(await page.locator('body').innerText()).toMatch(/simulated[\s\S]*streaming[\s\S]*(empty|occupied) \d+ %/)
    expect(errors).toEqual([])
  } finally {
    await browser.close()
  }
})

test('pictures are served by the keys of pictures only', async () => {
  for (const key of ['raw/../secrets/postgres.jpg', 'other/a/b/c.jpg', 'raw/site-1/x.txt'])
    expect((await fetch(`${state.console}/api/pictures/${encodeURIComponent(key)}`)).status, key).toBe(400)
})

test('when night falls over the street, the watcher asks for training, once, with its figures', async () => {
  const before = new Date()
  // whatever comes of it, those who come after it want their day
  await using _ = { [Symbol.asyncDispose]: async () => void (await fetch(`${state.health['agent']}/simulator/street/day`, { method: 'POST' })) }
  const answer = await fetch(`${state.health['agent']}/simulator/street/night`, { method: 'POST' })
  expect(await answer.text()).toContain('street is night now')
  // it may have asked a moment ago for another reason, and rests for two minutes then
  const decision = await soon(
    async () =>
      one<{ evidence: { balancedAccuracy: number; n: number } }>("select evidence from decisions where task = 'occupancy' and decision = 'retrain' and decided_at > $1", [before]),
    270_000,
  )
  expect(decision.evidence.balancedAccuracy).toBeLessThan(0.85)
  expect(decision.evidence.n).toBeGreaterThanOrEqual(60)
  const asked = await soon(async () => {
    const { rows } = await pool.query("select 1 from training_runs where task = 'occupancy' and cause = 'quality' and requested_at > $1", [before])
    return rows.length > 0 ? rows.length : undefined
  })
  expect(asked).toBe(1)
})
