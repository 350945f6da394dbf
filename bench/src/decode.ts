/**
 * Pictures of 1920x1080 → 224x224, CPU time of one thread: our scaled decode and area resize against OpenCV's full decode
 * with INTER_AREA, which is also the reference for the pixels, and against OpenCV at its quickest (IMREAD_REDUCED).
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { decodePicture } from '@frameloop/stream-processors/picture/decode-picture'
import { resize } from '@frameloop/stream-processors/picture/resize'
import { decibels, median } from './measure.ts'
import { enlargedFrames } from './pictures.ts'
import { rivalPython, startRival } from './rivals.ts'

const side = 224
const rounds = 15
const passes = 3
const ways = ['full', 'reduced2', 'reduced4'] as const
type Way = 'ours' | (typeof ways)[number]

async function prepare(jpeg: Buffer): Promise<Uint8Array> {
  const picture = await decodePicture(jpeg, { atLeast: { width: side, height: side } })
  return resize(picture.rgb, picture.width, { x: 0, y: 0, width: picture.width, height: picture.height }, side, side)
}

export async function benchDecode(say: (text: string) => void): Promise<object> {
  const python = rivalPython(say)
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-decode-'))
  try {
    const { names, jpegs } = enlargedFrames(folder, 60, 12)
    say(`${names.length} pictures of 1920x1080, ${Math.round(jpegs.reduce((sum, { length }) => sum + length, 0) / names.length / 1000)} kB each`)
    const rival = startRival(python, 'decode.py', [folder, String(side), String(side), ...names])
    const psnr: Record<string, number> = {}
    let version = ''
    for (const way of ways) version = (await rival.ask<{ version: string }>(`${way} write`)).version
    const outputs = async (way: Way, at: number): Promise<Uint8Array> => (way === 'ours' ? prepare(jpegs[at] as Buffer) : readFileSync(join(folder, `${names[at]}.${way}.rgb`)))
    for (const way of ['ours', 'reduced2', 'reduced4'] as const) {
      const all: number[] = []
      for (let at = 0; at < names.length; at += 1) all.push(decibels(await outputs(way, at), await outputs('full', at)))
      psnr[way] = Math.round(Math.min(...all) * 10) / 10
    }
    say(`least PSNR against OpenCV's full decode and INTER_AREA: ours ${psnr['ours']} dB, reduced by 2 ${psnr['reduced2']} dB, by 4 ${psnr['reduced4']} dB`)
    if ((psnr['ours'] ?? 0) < 35) throw new Error('our pictures differ too much from the reference: the comparison is void')
    const times: Record<Way, number[]> = { ours: [], full: [], reduced2: [], reduced4: [] }
    const run = async (way: Way): Promise<number> => {
      if (way !== 'ours') return (await rival.ask<{ cpuMs: number }>(`${way} ${passes}`)).cpuMs
      const since = process.cpuUsage()
      for (let pass = 0; pass < passes; pass += 1) for (const jpeg of jpegs) await prepare(jpeg)
      const { user, system } = process.cpuUsage(since)
      return (user + system) / 1000 / passes / jpegs.length
    }
    for (let round = -1; round < rounds; round += 1) {
      const order: readonly Way[] = ['ours', ...ways]
      for (const way of round % 2 === 0 ? order : [...order].reverse()) {
        const took = await run(way)
        if (round >= 0) times[way].push(took)
      }
    }
    await rival.end()
    const ratios = Object.fromEntries(ways.map((way) => [way, times[way].map((took, at) => took / (times.ours[at] ?? 1)).sort((a, b) => a - b)]))
    for (const way of ['ours', ...ways] as const) say(`${way.padEnd(9)} ${median(times[way]).toFixed(2)} CPU ms a picture`)
    for (const way of ways) say(`${median(ratios[way] ?? []).toFixed(2)} x OpenCV ${way} (${(ratios[way]?.[0] ?? 0).toFixed(2)} to ${(ratios[way]?.at(-1) ?? 0).toFixed(2)})`)
    return { opencv: version, pictures: names.length, psnr, cpuMs: times, ratios }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
