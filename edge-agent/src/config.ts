/** The agent's settings. */

import { kafkaSettings, objectStoreSettings, processSettings } from '@frameloop/kit/config'
import { namePattern } from '@frameloop/schemas/ids'
import Type from 'typebox'

export const AgentSettings = Type.Object({
  ...processSettings,
  ...kafkaSettings,
  ...objectStoreSettings,
  agentId: Type.String({ pattern: namePattern, description: 'unique in an installation', examples: ['agent-1'] }),
  siteId: Type.String({ pattern: namePattern, default: 'site-1', description: 'where the cameras are' }),
  spoolFolder: Type.String({ minLength: 1, description: 'folder of the durable queue', examples: ['/var/lib/frameloop/spool'] }),
  spoolCapacityBytes: Type.Integer({ minimum: 1_000_000, default: 2_000_000_000, description: 'what waiting frames may take' }),
  cameras: Type.String({
    minLength: 2,
    description: 'JSON array of { cameraId, address, framesPerSecond? }',
    examples: ['[{"cameraId":"door","address":"rtsp://user:password@10.0.0.7/stream"}]'],
  }),
  uploadConcurrency: Type.Integer({ minimum: 1, maximum: 64, default: 6, description: 'uploads at a time' }),
  ffmpegPath: Type.String({ default: 'ffmpeg', description: 'ffmpeg 5 or newer' }),
  ffprobePath: Type.String({ default: 'ffprobe', description: 'ffprobe of the same ffmpeg' }),
})
