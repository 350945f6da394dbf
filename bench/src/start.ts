/** How long it takes until everything is ready: the first start of an empty home, second starts, starts after a kill -9 of everything. */
import { type OwnStack, openOwnHome, startOwnStack } from '../../deploy/e2e/own-stack.ts'
import { median } from './measure.ts'

const seconds = (ms: number): number => Math.round(ms / 100) / 10

interface Starts {
  readonly median: number
  readonly least: number
  readonly most: number
  readonly all: readonly number[]
  /** Median of each part, in seconds. */
  readonly parts: Readonly<Record<string, number>>
}

function summarise(starts: readonly Pick<OwnStack, 'readyMs' | 'parts'>[]): Starts {
  const all = starts.map(({ readyMs }) => seconds(readyMs))
  const names = Object.keys(starts[0]?.parts ?? {})
  return {
    median: seconds(median(starts.map(({ readyMs }) => readyMs))),
    least: Math.min(...all),
    most: Math.max(...all),
    all,
    parts: Object.fromEntries(names.map((name) => [name, seconds(median(starts.map(({ parts }) => parts[name] ?? 0)))])),
  }
}

/** Times are in seconds. The simulated camera runs and its model, trained in the first start, is loaded before `ready`. */
export async function benchStart(say: (text: string) => void): Promise<object> {
  await using home = openOwnHome()
  const first = await startOwnStack(home, [])
  say(`first start of an empty home: ${seconds(first.readyMs)} s`)
  await untilChampion(first)
  await first.end('SIGTERM')
  const second: OwnStack[] = []
  for (let at = 0; at < 5; at += 1) {
    const stack = await startOwnStack(home, [])
    second.push(stack)
    say(`second start ${at + 1} of 5: ${seconds(stack.readyMs)} s, models serving: ${await servingModels(stack)}`)
    if (at < 4) await stack.end('SIGTERM')
  }
  await second.at(-1)?.killEverything()
  const killed: OwnStack[] = []
  for (let at = 0; at < 5; at += 1) {
    const stack = await startOwnStack(home, [])
    killed.push(stack)
    say(`start ${at + 1} of 5 after kill -9 of everything: ${seconds(stack.readyMs)} s, models serving: ${await servingModels(stack)}`)
    if (at < 4) await stack.killEverything()
  }
  await killed.at(-1)?.end('SIGTERM')
  const result = { firstSeconds: seconds(first.readyMs), second: summarise(second), afterKill: summarise(killed) }
  const line = (name: string, { median: middle, least, most, parts }: Starts): string =>
    `${name}: median ${middle} s (${least} to ${most})\n${Object.entries(parts)
      .map(([part, took]) => `  ${part.padEnd(10)} ${took} s`)
      .join('\n')}`
  say(line('second start', result.second))
  say(line('after kill -9 of everything', result.afterKill))
  return result
}

async function servingModels({ state }: OwnStack): Promise<number> {
  const answer = (await (await fetch(`${state.endpoints['serve']}/v1/models`)).json()) as { models: unknown[] }
  return answer.models.length
}

async function untilChampion(stack: OwnStack): Promise<void> {
  const deadline = Date.now() + 240_000
  while ((await servingModels(stack)) === 0) {
    if (Date.now() > deadline) throw new Error('no model was trained within four minutes')
    await new Promise((resolve) => setTimeout(resolve, 1_000))
  }
}
