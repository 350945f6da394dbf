/**
 * Where agents have bad days: a stack that is their cloud, its broker and its object store behind proxies that go wrong on
 * demand, agents as processes of their own, and the question whether all they captured is accounted for.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { until } from '@frameloop/kit/retry'
import type { Ms } from '@frameloop/kit/units'
import type { AgentReported } from '@frameloop/schemas/events'
import { expect } from 'vitest'
import { freePort } from '../e2e/network-camera.ts'
import { doubled, type OwnStack, openOwnHome, startOwnStack } from '../e2e/own-stack.ts'
import { build } from '../src/home.ts'
import { overdue, readLedger, showLedger } from '../src/ledger.ts'
import { type FaultProxy, openProxy } from './proxy.ts'

export interface AgentUnderTest {
  start(options?: { readonly before?: readonly string[]; readonly node?: readonly string[] }): ChildProcess
  /** Writes its configuration anew; it follows. */
  configure(cameras: readonly object[]): void
  status(): Promise<AgentReported | undefined>
  said(): string
}

export interface Lab {
  /** Thrown away at the end. */
  readonly folder: string
  readonly proxies: Readonly<Record<'kafka' | 's3', FaultProxy>>
  readonly stack: OwnStack
  readonly pool: Pool
  openAgent(name: string, cameras: readonly object[], spool?: object): Promise<AgentUnderTest>
  /** Nothing waits any more, nothing is overdue, nothing came twice. */
  expectSound(agent: AgentUnderTest, within?: Ms): Promise<void>
  capturedBy(agentId: string): Promise<number>
  close(): Promise<void>
}

export const simulated = (id: string, seed: number, framesPerSecond = 10): object => ({ id, address: `simulator:?seed=${seed}`, framesPerSecond })

export async function openLab(): Promise<Lab> {
  const home = openOwnHome()
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-agent-faults-'))
  const portOf = (part: string) => (): number => (JSON.parse(readFileSync(join(home.folder, 'ports.json'), 'utf8')) as Record<string, number>)[part] ?? 0
  const proxies = { kafka: await openProxy('kafka', portOf('kafka')), s3: await openProxy('tcp', portOf('s3')) }
  const stack = await startOwnStack(home, ['--no-demo'], { FRAMELOOP_VIA: JSON.stringify({ kafka: proxies.kafka.port, s3: proxies.s3.port }) })
  const pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
  return {
    ...{ folder, proxies, stack, pool },
    async openAgent(name, cameras, spool = {}) {
      const { endpoints, environment } = stack.state
      const [file, port] = [join(folder, `${name}.yaml`), await freePort()]
      let said = ''
      const configure = (now: readonly object[]): void =>
        writeFileSync(
          file,
          JSON.stringify({
            ...{ agent: name, port, spool: { folder: join(folder, name), ...spool } },
            ...{ kafka: { brokers: [endpoints['kafka'] ?? ''] }, registry: { url: endpoints['schemaRegistry'] ?? '' } },
            s3: { endpoint: endpoints['s3'] ?? '', accessKeyId: '${AWS_ACCESS_KEY_ID}', secretAccessKey: '${AWS_SECRET_ACCESS_KEY}' },
            cameras: now,
          }),
        )
      configure(cameras)
      return {
        configure,
        said: () => said,
        start({ before = [], node = [] } = {}) {
          const [command = '', ...args] = [...before, process.execPath, ...node, join(build, 'agent.mjs'), 'run', '--config', file]
          const child = spawn(command, args, { env: { ...process.env, ...environment }, stdio: ['ignore', 'pipe', 'pipe'] })
          for (const stream of [child.stdout, child.stderr])
            stream.on('data', (chunk: Buffer) => {
              said += chunk.toString('utf8')
            })
          return child
        },
        status: () =>
          fetch(`http://127.0.0.1:${port}/status`)
            .then((response) => response.json() as Promise<AgentReported>)
            .catch(() => undefined),
      }
    },
    async expectSound(agent, within = 180_000) {
      const isEmpty = await until(async () => (await agent.status())?.spoolFrames === 0 || undefined, within, 500)
      expect(isEmpty, `its spool is empty again; ${(await agent.status())?.spoolFrames} frames wait\n${agent.said().slice(-2_500)}`).toBe(true)
      const clean = await until(async () => overdue(await readLedger(pool)).length === 0 || undefined, within, 1_000)
      expect(clean ? '' : showLedger(await readLedger(pool))).toBe('')
      expect(await doubled(pool)).toEqual([])
    },
    capturedBy: async (agentId) =>
      Number((await pool.query<{ n: string }>('select coalesce(sum(highest_seq), 0) as n from captures where agent_id = $1', [agentId])).rows[0]?.n ?? 0),
    async close() {
      await pool.end()
      for (const proxy of Object.values(proxies)) await proxy.close()
      rmSync(folder, { recursive: true, force: true })
      await home[Symbol.asyncDispose]()
    },
  }
}
