import { randomOf } from '@frameloop/kit/random'
import sharp from 'sharp'
import { expect, test } from 'vitest'
import { decodePicture } from './decode-picture.ts'
import { upright } from './upright.ts'

const [width, height] = [7, 5]
const stored = Uint8Array.from({ length: width * height * 3 }, (_, at) => (at * 37) % 256)

test.each([1, 2, 3, 4, 5, 6, 7, 8])('a picture that was taken in orientation %i is turned as sharp turns it', async (orientation) => {
  const raw = { raw: { width, height, channels: 3 as const } }
  const png = await sharp(stored, raw).withMetadata({ orientation }).png().toBuffer()
  const { data, info } = await sharp(png).autoOrient().raw().toBuffer({ resolveWithObject: true })
  expect(Buffer.from(upright(stored, width, height, orientation)).equals(data)).toBe(true)
  const jpeg = await sharp(stored, raw).withMetadata({ orientation }).jpeg({ quality: 100, chromaSubsampling: '4:4:4' }).toBuffer()
  expect(await decodePicture(jpeg)).toMatchObject({ width: info.width, height: info.height, fullWidth: info.width, fullHeight: info.height })
})

test('a damaged picture that lies on its side is refused as one is that does not, and a large one is shrunk while it is decoded', async () => {
  // the same each time: some pictures decode to something all the same
  const random = randomOf(1)
  const noise = Uint8Array.from({ length: 640 * 480 * 3 }, () => 88 + Math.floor(random() * 80))
  const large = sharp(noise, { raw: { width: 640, height: 480, channels: 3 } })
  const bytes = await large.withMetadata({ orientation: 6 }).jpeg().toBuffer()
  expect(await decodePicture(bytes, { atLeast: { width: 60, height: 80 } })).toMatchObject({ width: 60, height: 80, scale: 8, fullWidth: 480, fullHeight: 640 })
  const damaged = Buffer.from(bytes)
  damaged.fill(0xff, bytes.length >> 1, (bytes.length >> 1) + 40)
  await expect(decodePicture(damaged)).rejects.toMatchObject({ code: 'PICTURE_UNREADABLE' })
})
