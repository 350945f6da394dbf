/**
 * Twenty minutes (or SOAK_MINUTES) of an agent with faults at random: its object store, its broker, its camera, itself. At
 * the end nothing is unaccounted for, and it has not grown: resident memory and descriptors of its last life are flat.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { randomOf } from '@frameloop/kit/random'
import { until } from '@frameloop/kit/retry'
import type { EpochMs } from '@frameloop/kit/units'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type NetworkCamera, openNetworkCamera } from '../e2e/network-camera.ts'
import { endChild } from '../e2e/own-stack.ts'
import { type Lab, openLab, simulated } from '../faults/agent-lab.ts'
import type { Trouble } from '../faults/proxy.ts'
import { growthPerTenMinutes } from './growth.ts'

const minutes = Number(process.env['SOAK_MINUTES'] ?? 20)
const seed = Number(process.env['SOAK_SEED'] ?? 1)
let lab: Lab
let camera: NetworkCamera

beforeAll(async () => {
  lab = await openLab()
  camera = await openNetworkCamera(lab.folder)
  await camera.start('x')
})

afterAll(async () => {
  camera.signal('SIGKILL')
  await lab.close()
})

interface Sample {
  readonly at: EpochMs
  readonly residentMB: number
  readonly descriptors: number
}

function sampleOf(pid: number): Sample {
  const residentMB = Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024
  return { at: Date.now(), residentMB, descriptors: readdirSync(`/proc/${pid}/fd`).length }
}

test(`${minutes} minutes of faults at random lose nothing and leave nothing behind`, async () => {
  const random = randomOf(seed)
  const set = (part: 's3' | 'kafka', trouble: Trouble): void => {
    lab.proxies[part].trouble = trouble
  }
  const gate = {
    id: 'soak-gate',
    address: camera.address,
    username: camera.username,
    password: 'x',
    framesPerSecond: 5,
    clips: { before: 2, after: 2 },
    motion: { threshold: 0.002 },
  }
  const agent = await lab.openAgent('soak', [simulated('soak-a', 1), simulated('soak-b', 2, 5), simulated('soak-c', 3, 2), gate])
  let child = agent.start()
  const faults: Readonly<Record<string, () => void | Promise<void>>> = {
    'the object store answers 503': () => set('s3', { kind: 'refuse', status: 503 }),
    'the object store is a black hole': () => set('s3', { kind: 'black hole' }),
    'the object store resets': () => set('s3', { kind: 'cut', of: 'requests', after: 20_000 }),
    'answers of the object store are lost': () => set('s3', { kind: 'answers lost' }),
    'a thin link': () => set('s3', { kind: 'delay', ms: 100 }),
    'Kafka is a black hole': () => set('kafka', { kind: 'black hole' }),
    'Kafka resets': () => set('kafka', { kind: 'cut', of: 'answers', after: 2_000 }),
    'Kafka is slow': () => set('kafka', { kind: 'delay', ms: 200 }),
    'the camera freezes': () => camera.signal('SIGSTOP'),
    'the camera is switched off': () => camera.signal('SIGKILL'),
    'the agent is killed': async () => {
      await endChild(child, 'SIGKILL')
      child = agent.start()
    },
  }
  const names = Object.keys(faults)
  const counts = new Map<string, number>()
  const began = Date.now()
  const [until_, lastLife] = [began + minutes * 60_000, began + minutes * 15_000]
  let samples: Sample[] = []
  while (Date.now() < until_) {
    const isLastLife = Date.now() > lastLife
    const name = names[Math.floor(random() * (isLastLife ? names.length - 1 : names.length))] ?? ''
    counts.set(name, (counts.get(name) ?? 0) + 1)
    await faults[name]?.()
    await sleep(4_000 + random() * 12_000)
    for (const part of ['s3', 'kafka'] as const) set(part, { kind: 'none' })
    if (name === 'the camera freezes') camera.signal('SIGCONT')
    if (name === 'the camera is switched off') await camera.start('x')
    const calm = await until(async () => ((await agent.status())?.spoolFrames ?? 100) < 100 || undefined, 120_000, 500)
    expect(calm, `after "${name}" the spool empties again\n${agent.said().slice(-2_500)}`).toBe(true)
    if (!isLastLife) continue
    samples = [...samples, sampleOf(child.pid ?? 0)]
    const last = samples.at(-1)
    process.stdout.write(`${((Date.now() - began) / 60_000).toFixed(1)} min  ${name.padEnd(40)} ${last?.residentMB.toFixed(0)} MB  ${last?.descriptors} descriptors\n`)
  }
  // a spool that is never quite empty has no end to wait for
  agent.configure([simulated('soak-still', 1, 0.1)])
  await lab.expectSound(agent)
  const captured = await lab.capturedBy('soak')
  await endChild(child, 'SIGTERM')
  const settled = samples.filter(({ at }) => at > lastLife + (until_ - lastLife) / 4)
  const growth = growthPerTenMinutes(settled.map(({ at, residentMB }) => ({ at, value: residentMB })))
  const descriptors = settled.map((sample) => sample.descriptors)
  process.stdout.write(
    `${captured} frames and clips, all accounted for; seed ${seed}: ${[...counts].map(([name, count]) => `${count} x ${name}`).join(', ')}\n` +
      `resident memory ${(growth * 100).toFixed(1)} % in ten minutes, ${Math.min(...descriptors)} to ${Math.max(...descriptors)} descriptors in ${settled.length} samples\n`,
  )
  expect(growth).toBeLessThan(0.05)
  expect((descriptors.at(-1) ?? 0) - (descriptors[0] ?? 0)).toBeLessThan(20)
})
