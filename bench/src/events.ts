/** Events as they travel. */
import type { FeaturesPrepared, FrameExtracted, MediaCaptured, MediaValidated } from '@frameloop/schemas/events'

export function aValidated(seq: number): MediaValidated {
  return {
    siteId: 'site-1',
    cameraId: `camera-${seq % 16}`,
    mediaId: `e5236691-dc22-5618-bb60-${String(seq).padStart(12, '0')}`,
    epoch: '0f1e2d3c4b5a69788796a5b4c3d2e1f0',
    seq,
    lane: 'live',
    source: 'camera',
    kind: 'image',
    agentId: 'agent-1',
    capturedAt: 1_790_000_000_000 + seq,
    mediaOffsetUs: seq * 200_000,
    object: {
      bucket: 'frameloop-raw',
      key: `raw/site-1/camera-1/2026/11/24/10/e5236691-dc22-5618-bb60-${String(seq).padStart(12, '0')}.jpg`,
      sha256: seq.toString(16).padStart(64, 'a'),
      bytes: 34_567,
      versionId: '',
      contentType: 'image/jpeg',
    },
    width: 1920,
    height: 1080,
    motion: 0.25,
    sourceName: 'rtsp://camera-1/stream',
    format: 'jpeg',
    durationUs: 0,
    brightness: 101.25,
    sharpness: 431.5,
    phash: '0123456789abcdef',
    fingerprint: 'fedcba9876543210',
    marks: [],
    arrivedAt: 1_790_000_000_500 + seq,
    validatedAt: 1_790_000_001_000 + seq,
    stageVersion: '2',
  }
}

/** The four events of one frame's way, the last one without the copy of its pixels. */
export interface Way {
  readonly MediaCaptured: MediaCaptured
  readonly MediaValidated: MediaValidated
  readonly FrameExtracted: FrameExtracted
  readonly FeaturesPrepared: FeaturesPrepared
}

export function aWay(seq: number): Way {
  const validated = aValidated(seq)
  const { siteId, cameraId, mediaId, epoch, lane, source, kind, agentId, capturedAt, mediaOffsetUs, object, width, height, motion, sourceName, arrivedAt, validatedAt } = validated
  const frameId = `0b7f1c52-8f0e-5d53-9a6e-${String(seq).padStart(12, '0')}`
  const of = { siteId, cameraId, mediaId, epoch, seq, lane, source, frameId, frameAt: capturedAt, mediaOffsetUs }
  const times = { arrivedAt, validatedAt, extractedAt: capturedAt + 1_100 }
  const zone = { tasks: ['occupancy'], width: 96, height: 96, shape: [64, 64, 3], brightness: 97.41, sharpness: 388.07, phash: 'f0e1d2c3b4a59687' }
  return {
    MediaCaptured: { siteId, cameraId, mediaId, epoch, seq, lane, source, kind, agentId, capturedAt, mediaOffsetUs, object, width, height, motion, sourceName },
    MediaValidated: validated,
    FrameExtracted: { ...of, ...times, index: 0, frameCount: 1, ptsUs: 0, object, width, height, motion, stageVersion: '2' },
    FeaturesPrepared: {
      ...of,
      preprocessing: 'e6647aa23c578cf2',
      object: { ...object, bucket: 'frameloop-processed', key: `processed/e6647aa23c578cf2/${cameraId}/2026/11/24/10/${frameId}-${object.sha256}.bin`, bytes: 36_864 },
      picture: object,
      reference: null,
      pictureWidth: width,
      pictureHeight: height,
      zones: ['slot-1', 'slot-2', 'slot-3'].map((name, at) => ({ ...zone, zone: name, x: 40 + 110 * at, y: 120, offset: at * 12_288 })),
      pixels: null,
      ...times,
      preparedAt: capturedAt + 1_200,
      stageVersion: '2',
    },
  }
}
