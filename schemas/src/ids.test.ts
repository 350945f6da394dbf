import fc from 'fast-check'
import { expect, test } from 'vitest'
import { frameIdOf, isUuid, mediaIdOf, uuidV5 } from './ids.ts'

test('UUIDv5 is that of RFC 9562', () => {
  expect(uuidV5('6ba7b810-9dad-11d1-80b4-00c04fd430c8', Buffer.from('www.example.com'))).toBe('2ed6657d-e927-568b-95e1-2665a8aea6a2')
})

test('parts cannot be moved from one field of an identity to the next', () => {
  expect(mediaIdOf('a', 'bc', 'e', 1)).not.toBe(mediaIdOf('ab', 'c', 'e', 1))
})

test('the same picture has the same id, another one has another', () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), fc.nat(), fc.nat(), (agent, camera, seq, pts) => {
      const media = mediaIdOf(agent, camera, 'e', seq)
      expect(media).toBe(mediaIdOf(agent, camera, 'e', seq))
      expect(isUuid(frameIdOf(media, pts))).toBe(true)
      expect(frameIdOf(media, pts)).not.toBe(frameIdOf(media, pts + 1))
    }),
  )
})
