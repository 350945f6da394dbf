/** Settings of the cloud's processes. */

import { databaseSettings, kafkaSettings, objectStoreSettings, pageSettings, processSettings } from '@frameloop/kit/config'
import { isLoopback } from '@frameloop/kit/strangers'
import { namePattern } from '@frameloop/schemas/ids'
import Type from 'typebox'

/** Whether callers of inference must have a key: unless it is said otherwise, everywhere but on loopback. */
export function needsKeys({ apiKeys, host }: { readonly apiKeys: string; readonly host: string }): boolean {
  return apiKeys === 'required' || (apiKeys === 'elsewhere' && !isLoopback(host))
}

export const CloudSettings = Type.Object({
  ...processSettings,
  ...kafkaSettings,
  ...objectStoreSettings,
  ...databaseSettings,
  instance: Type.String({ pattern: namePattern, default: '1', description: 'stable name of this instance among those of its kind' }),
  mlflowTrackingUri: Type.String({ pattern: '^https?://', description: 'MLflow server', examples: ['http://127.0.0.1:5000'] }),
  modelCacheFolder: Type.String({ default: '.frameloop/models', description: 'where loaded model files are kept, by digest' }),
})

/** Of processes with an API. */
export const ApiSettings = Type.Object({ ...CloudSettings.properties, ...pageSettings })

export const IngestSettings = Type.Object({
  ...ApiSettings.properties,
  signingKey: Type.String({ default: '', description: 'PEM of an Ed25519 private key: what is uploaded is signed with it, as agent `ingest`' }),
})

export const ServeSettings = Type.Object({
  ...ApiSettings.properties,
  apiKeys: Type.Union(
    (['required', 'elsewhere', 'off'] as const).map((name) => Type.Literal(name)),
    { default: 'elsewhere', description: 'whether callers need a key: always, everywhere but on loopback, or never', examples: ['required'] },
  ),
})
