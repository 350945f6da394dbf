/** `POST /simulator/{cameraId}/{change}` on the agent's own port: makes it night, rain, … for a simulated camera. */
import type { Log } from '@frameloop/kit/log'
import type { Camera } from './agent.ts'
import { sceneChanges } from './capture/scene.ts'
import type { SimulatorSource } from './capture/simulator.ts'

export function openSimulatorControl(cameras: readonly Camera[], log: Log) {
  return (method: string, path: string): { readonly status: number; readonly body: string } | undefined => {
    const match = /^\/simulator\/([^/]+)\/([^/]+)$/.exec(path)
    if (method !== 'POST' || !match) return undefined
    const camera = cameras.find(({ settings }) => settings.cameraId === match[1])
    const change = sceneChanges.find((known) => known === match[2])
    if (camera?.source.kind !== 'simulator') return { status: 404, body: `there is no simulated camera ${match[1]}\n` }
    if (!change) return { status: 400, body: `a scene can be ${sceneChanges.join(', ')}\n` }
    const source = camera.source as SimulatorSource
    source.change(change)
    log.info({ cameraId: match[1], change }, 'simulated scene changed')
    return { status: 200, body: `${match[1]} is ${change} now\n` }
  }
}
