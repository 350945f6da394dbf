/**
 * One typed settings object per process. `readConfig` turns environment variables into it, or reports every problem
 * at once with the variable's name and an example. Property `kafkaBrokers` is read from `KAFKA_BROKERS`.
 */
import type { Static, TObject } from 'typebox'
import Type from 'typebox'
import Value from 'typebox/value'
import { Fault } from './fault.ts'

/** `kafkaBrokers` → `KAFKA_BROKERS`. */
export function variableName(property: string): string {
  return property.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()
}

interface Described {
  readonly description?: string
  readonly examples?: readonly unknown[]
}

/** Reads settings from the environment. Throws `CONFIG_INVALID` naming all problems. */
export function readConfig<Schema extends TObject>(schema: Schema, env: NodeJS.ProcessEnv): Static<Schema> {
  const raw: Record<string, unknown> = {}
  for (const property of Object.keys(schema.properties)) {
    const text = env[variableName(property)]
    if (text !== undefined && text !== '') raw[property] = text
  }
  const value = Value.Convert(schema, Value.Default(schema, raw))
  if (Value.Check(schema, value)) return value as Static<Schema>
  const problems = new Map<string, string>()
  for (const error of Value.Errors(schema, value)) {
    const missing = (error.params as { requiredProperties?: string[] }).requiredProperties
    const names = missing ?? [error.instancePath.split('/')[1] ?? '']
    for (const name of names) {
      const described = (schema.properties[name] ?? {}) as Described
      const example = described.examples?.[0]
      const text = [
        missing ? `${variableName(name)} is not set` : `${variableName(name)} ${error.message}`,
        described.description ? ` (${described.description})` : '',
        example === undefined ? '' : `, for example ${variableName(name)}=${example}`,
      ].join('')
      if (!problems.has(name)) problems.set(name, text)
    }
  }
  throw new Fault('CONFIG_INVALID', `Settings are wrong:\n  ${[...problems.values()].join('\n  ')}`)
}

/** Settings that every process has. */
export const processSettings = {
  port: Type.Integer({ minimum: 0, maximum: 65535, default: 0, description: 'port of /healthz, /readyz, /metrics and the API; 0 takes a free one' }),
  host: Type.String({ default: '127.0.0.1', description: 'address to listen on' }),
  logLevel: Type.Union(
    (['debug', 'info', 'warn', 'error'] as const).map((level) => Type.Literal(level)),
    { default: 'info', description: 'how much is logged' },
  ),
}

/** Settings of everything that browsers ask. */
export const pageSettings = {
  allowedOrigins: Type.String({
    default: '',
    pattern: '^(https?://[^/,\\s]+(,https?://[^/,\\s]+)*)?$',
    description: 'origins of pages elsewhere that may ask from a browser, comma separated',
    examples: ['https://shop.example.org'],
  }),
  allowedHosts: Type.String({
    default: '',
    pattern: '^[A-Za-z0-9.,-]*$',
    description: 'names this answers to beside localhost and addresses, comma separated; without any, all of them unless it listens on loopback only',
    examples: ['frameloop.example.org'],
  }),
}

/** The names in a comma-separated setting. */
export function listOf(setting: string): string[] {
  return setting
    .split(',')
    .map((name) => name.trim())
    .filter((name) => name !== '')
}

/** Settings of everything that speaks to Kafka and the registry. */
export const kafkaSettings = {
  kafkaBrokers: Type.String({ minLength: 1, description: 'brokers, comma separated', examples: ['127.0.0.1:9092'] }),
  schemaRegistryUrl: Type.String({ pattern: '^https?://', description: 'Confluent-compatible API of the schema registry', examples: ['http://127.0.0.1:8081/apis/ccompat/v7'] }),
}

/** Settings of everything that stores objects. */
export const objectStoreSettings = {
  s3Endpoint: Type.String({ default: '', description: 'S3 endpoint; empty means AWS', examples: ['http://127.0.0.1:8333'] }),
  s3Region: Type.String({ default: 'us-east-1', description: 'S3 region' }),
  awsAccessKeyId: Type.String({ default: '', description: 'access key; empty takes the ambient AWS credentials' }),
  awsSecretAccessKey: Type.String({ default: '', description: 'secret key' }),
  bucketPrefix: Type.String({ default: 'frameloop', pattern: '^[a-z0-9-]+$', description: 'buckets are named PREFIX-raw, PREFIX-processed, …' }),
}

export const databaseSettings = {
  databaseUrl: Type.String({ pattern: '^postgres(ql)?://', description: 'PostgreSQL', examples: ['postgres://user:password@127.0.0.1:5432/frameloop'] }),
}
