/** An event as it travels. */
import type { MediaValidated } from '@frameloop/schemas/events'

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
