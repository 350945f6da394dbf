/** The simulated street as a camera. Scene time runs from a fixed origin, so a restart goes on and never shows old moments as new ones. */
import { setTimeout as sleep } from 'node:timers/promises'
import type { EpochMs } from '@frameloop/kit/units'
import sharp from 'sharp'
import { paintScene, type SceneChange, sceneHeight, sceneWidth } from './scene.ts'
import type { Source } from './source.ts'

export interface SimulatorSettings {
  readonly seed: number
  readonly framesPerSecond: number
  /** When scene time was 0. */
  readonly origin: EpochMs
}

export interface SimulatorSource extends Source {
  readonly kind: 'simulator'
  /** Makes it night, rainy, …; what is true about the zones stays as it is. */
  change(to: SceneChange): void
}

export function simulatorSource(settings: SimulatorSettings): SimulatorSource {
  let now: SceneChange = 'day'
  const interval = 1000 / settings.framesPerSecond
  return {
    kind: 'simulator',
    change(to) {
      now = to
    },
    finishes: false,
    async *pictures(context, signal) {
      let tick = Math.ceil((Date.now() - settings.origin) / interval)
      while (!signal.aborted) {
        // a clock that was set back: the scene goes on where it shows now
        if (settings.origin + tick * interval > Date.now() + 2 * interval) tick = Math.ceil((Date.now() - settings.origin) / interval)
        const due = settings.origin + tick * interval
        if (due > Date.now()) await sleep(due - Date.now(), undefined, { signal })
        const sceneMs = Math.round(tick * interval)
        const bytes = await sharp(paintScene(settings.seed, sceneMs, now), { raw: { width: sceneWidth, height: sceneHeight, channels: 3 } })
          .jpeg({ quality: 80 })
          .toBuffer()
        context.say(now === 'day' ? 'simulated' : `simulated, ${now}`)
        yield {
          bytes,
          extension: 'jpg',
          kind: 'image',
          capturedAt: Math.round(due),
          mediaOffsetUs: sceneMs * 1000,
          width: sceneWidth,
          height: sceneHeight,
          sourceName: `simulator seed ${settings.seed}`,
          newPass: false,
        }
        // a machine that cannot paint in time skips moments instead of falling behind
        tick = Math.max(tick + 1, Math.floor((Date.now() - settings.origin) / interval))
      }
    },
  }
}
