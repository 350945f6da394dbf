/** `POST /simulator/{cameraId}/{change}` on the agent's own port: makes it night, rain, … for a simulated camera. */
import { type Answer, textAnswer } from '@frameloop/kit/health'
import type { Log } from '@frameloop/kit/log'
import type { Camera } from './camera.ts'
import { sceneChanges } from './capture/scene.ts'
import type { SimulatorSource } from './capture/simulator.ts'

export function changeScene(cameras: readonly Camera[], path: string, log: Log): Answer | undefined {
  const match = /^\/simulator\/([^/]+)\/([^/]+)$/.exec(path)
  if (!match) return undefined
  const camera = cameras.find(({ settings }) => settings.id === match[1])
  const change = sceneChanges.find((known) => known === match[2])
  if (camera?.source.kind !== 'simulator') return textAnswer(404, `there is no simulated camera ${match[1]}`)
  if (!change) return textAnswer(400, `a scene can be ${sceneChanges.join(', ')}`)
  const source = camera.source as SimulatorSource
  source.change(change)
  log.info({ cameraId: match[1], change }, 'simulated scene changed')
  return textAnswer(200, `${match[1]} is ${change} now`)
}
