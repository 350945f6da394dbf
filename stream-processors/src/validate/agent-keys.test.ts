import type { MediaCaptured } from '@frameloop/schemas/events'
import { makeKeys, privateKeyOf, publicKeyOf, signClaim } from '@frameloop/schemas/signature'
import { expect, test } from 'vitest'
import { disbelief } from './agent-keys.ts'

const { privatePem, publicPem } = makeKeys()
const keys = { of: (agentId: string) => (agentId === 'known' ? publicKeyOf(publicPem) : undefined), loaded: true }
const event = { siteId: 's', agentId: 'known', cameraId: 'c', epoch: 'e', seq: 1, capturedAt: 2, source: 'camera', object: { sha256: '00' } } as MediaCaptured
const signature = signClaim({ ...event, sha256: '00' }, privateKeyOf(privatePem))

test('who has a key is believed by its signature only; who has none is, unless every agent must have one', () => {
  expect(disbelief(event, signature, keys, true)).toBeUndefined()
  expect(disbelief(event, undefined, keys, false)).toContain('is not signed')
  expect(disbelief({ ...event, seq: 2 }, signature, keys, false)).toContain('whose signature it does not bear')
  expect(disbelief({ ...event, agentId: 'new' }, undefined, keys, false)).toBeUndefined()
  expect(disbelief({ ...event, agentId: 'new' }, undefined, keys, true)).toContain('has no key here')
})

test('what says to be an upload is believed of the ingest API only, by its signature where it has a key', () => {
  const upload = { ...event, source: 'upload' } as const
  expect(disbelief(upload, undefined, keys, false)).toContain('uploads are of ingest')
  // signed or not: a camera's agent uploads nothing
  expect(disbelief(upload, signature, keys, false)).toContain('uploads are of ingest')
  const ingested = { ...upload, agentId: 'ingest' }
  expect(disbelief(ingested, undefined, keys, false)).toBeUndefined()
  expect(disbelief(ingested, undefined, keys, true)).toContain('has no key here')
  const keyed = { ...keys, of: () => publicKeyOf(publicPem) }
  expect(disbelief(ingested, undefined, keyed, false)).toContain('is not signed')
  expect(disbelief(ingested, signClaim({ ...ingested, sha256: '00' }, privateKeyOf(privatePem)), keyed, true)).toBeUndefined()
})
