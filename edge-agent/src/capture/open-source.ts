/** A camera's address → the source that captures from it. */
import { join } from 'node:path'
import { Fault } from '@frameloop/kit/fault'
import { redact } from '@frameloop/kit/log'
import { type CameraSettings, ratesOf } from '../config.ts'
import { fileSource } from './file.ts'
import { folderSource } from './folder.ts'
import { httpSource } from './http.ts'
import { onvifSource } from './onvif.ts'
import { rtspSource } from './rtsp.ts'
import { simulatorSource } from './simulator.ts'
import { decoded, type Source } from './source.ts'
import { v4l2Source } from './v4l2.ts'

function pathOf(address: string): { readonly path: string; readonly query: URLSearchParams } {
  const rest = address.slice(address.indexOf(':') + 1).replace(/^\/\/(?=\/)/, '')
  const at = rest.lastIndexOf('?')
  return at < 0 ? { path: decoded(rest), query: new URLSearchParams() } : { path: decoded(rest.slice(0, at)), query: new URLSearchParams(rest.slice(at + 1)) }
}

/** `memories`: the folder of what sources remember over a restart. Throws `SOURCE_UNREADABLE` for an address that no source understands. */
export function openSource(camera: CameraSettings, memories?: string): Source {
  const scheme = camera.address.slice(0, camera.address.indexOf(':'))
  const { path, query } = pathOf(camera.address)
  switch (scheme) {
    case 'simulator':
      return simulatorSource({
        seed: Number(query.get('seed') ?? 1),
        framesPerSecond: ratesOf(camera).asked,
        origin: Number(query.get('origin') ?? Date.now()),
      })
    case 'file':
      return fileSource({ path, loop: query.get('loop') !== 'false', realTime: query.get('speed') !== 'max' }, camera)
    case 'folder':
      return folderSource({ path, framesPerSecond: ratesOf(camera).asked, ...(memories ? { memory: join(memories, `${camera.id}.taken`) } : {}) })
    case 'rtsp':
    case 'rtsps':
      return rtspSource(camera)
    case 'onvif':
      return onvifSource(camera)
    case 'http':
    case 'https':
      return httpSource(camera)
    case 'v4l2':
      return v4l2Source(path, camera)
    default:
      throw new Fault(
        'SOURCE_UNREADABLE',
        `No source understands the address ${redact(camera.address)} of camera ${camera.id}; it begins with rtsp:, rtsps:, onvif:, http:, https:, v4l2:, file:, folder: or simulator:`,
        { cameraId: camera.id },
      )
  }
}
