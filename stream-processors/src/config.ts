/** The chain's settings: one object for all of its processes. */

import { availableParallelism } from 'node:os'
import { databaseSettings, kafkaSettings, objectStoreSettings, processSettings } from '@frameloop/kit/config'
import { namePattern } from '@frameloop/schemas/ids'
import Type from 'typebox'

export const ChainSettings = Type.Object({
  ...processSettings,
  ...kafkaSettings,
  ...objectStoreSettings,
  ...databaseSettings,
  instance: Type.String({ pattern: namePattern, default: '1', description: 'stable name of this instance among those of its stage' }),
  requireSignatures: Type.Boolean({ default: false, description: 'whether agents whose key is not known are refused' }),
  pixelThreads: Type.Integer({ minimum: 1, maximum: 64, default: availableParallelism(), description: 'threads that decode and prepare pictures; as many as cores unless stated' }),
  ffmpegPath: Type.String({ default: 'ffmpeg', description: 'ffmpeg 5 or newer' }),
  ffprobePath: Type.String({ default: 'ffprobe', description: 'ffprobe of the same ffmpeg' }),
  clipFrames: Type.Union([Type.Literal('rate'), Type.Literal('key-frames'), Type.Literal('scene')], {
    default: 'rate',
    description: 'which frames of a clip are taken: by rate, its key frames, or where the scene changes',
  }),
  clipFramesPerSecond: Type.Number({ exclusiveMinimum: 0, maximum: 60, default: 2, description: 'frames a second taken out of a clip, by rate' }),
  clipSceneChange: Type.Number({ minimum: 0, maximum: 1, default: 0.3, description: 'share of the picture that must change for a new scene' }),
  archiveRecords: Type.Integer({ minimum: 10, default: 2000, description: 'offsets of a partition in one archive file; never changed once something is archived' }),
  clipFrameLimit: Type.Integer({ minimum: 1, default: 600, description: 'at most this many frames of one clip' }),
})
