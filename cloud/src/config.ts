/** Settings of the cloud's processes. */

import { databaseSettings, kafkaSettings, objectStoreSettings, processSettings } from '@frameloop/kit/config'
import { namePattern } from '@frameloop/schemas/ids'
import Type from 'typebox'

export const CloudSettings = Type.Object({
  ...processSettings,
  ...kafkaSettings,
  ...objectStoreSettings,
  ...databaseSettings,
  instance: Type.String({ pattern: namePattern, default: '1', description: 'stable name of this instance among those of its kind' }),
  mlflowTrackingUri: Type.String({ pattern: '^https?://', description: 'MLflow server', examples: ['http://127.0.0.1:5000'] }),
  modelCacheFolder: Type.String({ default: '.frameloop/models', description: 'where loaded model files are kept, by digest' }),
})
