/** The grammar of S3 keys, made from ids alone and never from what a user typed. */
import type { EpochMs } from '@frameloop/kit/units'
import type { FrameId, MediaId } from './ids.ts'

export type BucketRole = 'raw' | 'processed' | 'datasets' | 'archive' | 'quarantine' | 'models'
export const bucketRoles: readonly BucketRole[] = ['raw', 'processed', 'datasets', 'archive', 'quarantine', 'models']

export function bucketName(prefix: string, role: BucketRole): string {
  return `${prefix}-${role}`
}

function hourPath(at: EpochMs): string {
  const iso = new Date(at).toISOString()
  return `${iso.slice(0, 4)}/${iso.slice(5, 7)}/${iso.slice(8, 10)}/${iso.slice(11, 13)}`
}

export interface MediaPlace {
  readonly siteId: string
  readonly cameraId: string
  readonly mediaId: MediaId
  readonly capturedAt: EpochMs
  /** Without a dot: `jpg`. */
  readonly extension: string
}

/** `raw/{site}/{camera}/{yyyy}/{mm}/{dd}/{hh}/{mediaId}.{ext}` */
export function rawKey(place: MediaPlace): string {
  return `raw/${place.siteId}/${place.cameraId}/${hourPath(place.capturedAt)}/${place.mediaId}.${place.extension}`
}

const checks = '_checks'

/** What an agent puts to see whether it may: `raw/{site}/_checks/{agent}.txt`. No camera can be called so. */
export function checkKey(siteId: string, agentId: string): string {
  return `raw/${siteId}/${checks}/${agentId}.txt`
}

export function isCheckKey(key: string): boolean {
  return key.split('/')[2] === checks
}

/** A picture taken out of a clip: `frames/{site}/{camera}/…/{mediaId}/{frameId}.jpg` in the processed bucket. */
export function clipFrameKey(place: Omit<MediaPlace, 'extension'>, frameId: FrameId): string {
  return `frames/${place.siteId}/${place.cameraId}/${hourPath(place.capturedAt)}/${place.mediaId}/${frameId}.jpg`
}

/** `processed/{preprocessing}/{camera}/{yyyy}/{mm}/{dd}/{hh}/{frameId}-{sha256}.bin` */
export function processedKey(preprocessing: string, cameraId: string, frameAt: EpochMs, frameId: FrameId, sha256: string): string {
  return `processed/${preprocessing}/${cameraId}/${hourPath(frameAt)}/${frameId}-${sha256}.bin`
}

export function datasetKey(digest: string): string {
  return `datasets/${digest}.json`
}

/** `archive/{topic}/{partition}/{first offset, 20 digits}.avro` */
export function archiveKey(topic: string, partition: number, from: number): string {
  return `archive/${topic}/${partition}/${String(from).padStart(20, '0')}.avro`
}

/** What a replay prepares lies apart, so that removing it touches nothing else: `replays/{id}/…` in the processed bucket. */
export function replayPrefix(id: string): string {
  return `replays/${id}/`
}

/** What a replay has read: `manifests/{digest}.json` in the datasets bucket. */
export function manifestKey(digest: string): string {
  return `manifests/${digest}.json`
}

/** `references/{camera}/{sha256}.png` in the datasets bucket. */
export function referenceKey(cameraId: string, sha256: string): string {
  return `references/${cameraId}/${sha256}.png`
}

const contentTypes: Readonly<Record<string, string>> = {
  jpg: 'image/jpeg',
  png: 'image/png',
  webp: 'image/webp',
  mp4: 'video/mp4',
  mkv: 'video/x-matroska',
  avi: 'video/x-msvideo',
}

export function contentTypeOf(extension: string): string {
  return contentTypes[extension] ?? 'application/octet-stream'
}
