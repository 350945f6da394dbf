/**
 * How identities are made. Nothing random: whoever knows where a picture came from computes the same id again,
 * which is what makes every write after it idempotent.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Us } from '@frameloop/kit/units'

declare const brand: unique symbol
export type CameraId = string & { readonly [brand]?: 'camera' }
export type Epoch = string & { readonly [brand]?: 'epoch' }
export type MediaId = string & { readonly [brand]?: 'media' }
export type FrameId = string & { readonly [brand]?: 'frame' }

/** The camera whose frames prove at every start that the chain works; pages and counts of people's cameras leave it out. */
export const probeCameraId = 'frameloop-probe'
/** Who announces uploads, in the place of an agent. */
export const ingestAgentId = 'ingest'

/** Namespaces of the UUIDv5 ids; they may never change. */
const mediaNamespace = '6f0c3d0a-52ad-4b39-9a3e-0f2a6c1d7b11'
const frameNamespace = 'b8a4d0de-0a54-4c0f-8a55-52cf7d6b2e02'

/** RFC 9562, 5.5: SHA-1 over namespace and name. */
export function uuidV5(namespace: string, name: Uint8Array): string {
  const digest = createHash('sha1')
    .update(Buffer.from(namespace.replaceAll('-', ''), 'hex'))
    .update(name)
    .digest()
    .subarray(0, 16)
  digest[6] = ((digest[6] ?? 0) & 0x0f) | 0x50
  digest[8] = ((digest[8] ?? 0) & 0x3f) | 0x80
  const hex = digest.toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
}

/** Parts with their lengths before them, so that ('ab', 'c') and ('a', 'bc') differ. */
function lengthPrefixed(parts: readonly string[]): Buffer {
  return Buffer.concat(
    parts.flatMap((part) => {
      const bytes = Buffer.from(part, 'utf8')
      const length = Buffer.alloc(4)
      length.writeUInt32BE(bytes.length)
      return [length, bytes]
    }),
  )
}

/** 128 random bits as 32 hex digits: a re-imaged box or a copied disk can never reuse an identity. */
export function mintEpoch(): Epoch {
  return randomBytes(16).toString('hex')
}

export function mediaIdOf(agentId: string, cameraId: CameraId, epoch: Epoch, seq: number): MediaId {
  return uuidV5(mediaNamespace, lengthPrefixed(['agent', agentId, cameraId, epoch, String(seq)]))
}

/** An upload is named by its Idempotency-Key, else by capture time and content. */
export function uploadMediaIdOf(source: CameraId, idempotencyKey: string): MediaId {
  return uuidV5(mediaNamespace, lengthPrefixed(['upload', source, idempotencyKey]))
}

/** The presentation time comes from the container, so another extraction rate never moves a label; 0 for an image. */
export function frameIdOf(mediaId: MediaId, pts: Us): FrameId {
  return uuidV5(frameNamespace, lengthPrefixed([mediaId, String(pts)]))
}

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/
export function isUuid(text: string): boolean {
  return uuidPattern.test(text)
}

/** Names of cameras, sites, zones and tasks: what can stand in a key, a label and a URL alike. */
export const namePattern = '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'
const name = new RegExp(namePattern)
export function isName(text: string): boolean {
  return name.test(text)
}
