import { expect, test } from 'vitest'
import { isSigned, makeKeys, privateKeyOf, publicKeyOf, signClaim } from './signature.ts'

const claim = { siteId: 's', agentId: 'a', cameraId: 'c', epoch: 'e', seq: 1, capturedAt: 2, sha256: '00' }

test('what an agent signed is known as its own, and nothing else is', () => {
  const [own, other] = [makeKeys(), makeKeys()]
  const signature = signClaim(claim, privateKeyOf(own.privatePem))
  expect(isSigned(claim, signature, publicKeyOf(own.publicPem))).toBe(true)
  expect(isSigned(claim, signature, publicKeyOf(other.publicPem))).toBe(false)
  expect(isSigned(claim, undefined, publicKeyOf(own.publicPem))).toBe(false)
  expect(isSigned(claim, 'rubbish', publicKeyOf(own.publicPem))).toBe(false)
  for (const change of [{ agentId: 'b' }, { cameraId: 'd' }, { seq: 2 }, { sha256: '01' }, { capturedAt: 3 }])
    expect(isSigned({ ...claim, ...change }, signature, publicKeyOf(own.publicPem))).toBe(false)
})

test('a key that is none, or of another kind, is refused', () => {
  expect(() => privateKeyOf('rubbish')).toThrow('is no PEM')
  expect(() => publicKeyOf('')).toThrow('is no PEM')
})

test('a private key that is handed over as the public one is refused, and says where it belongs', () => {
  expect(() => publicKeyOf(makeKeys().privatePem)).toThrow(/private key, which stays beside the agent/)
})
