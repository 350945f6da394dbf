/**
 * S3: put once, get, head, list. Keys are only strings here.
 * O1  A put is conditional (`If-None-Match: *`): the first content under a key is the content for good.
 * O2  The sha256 travels with the object (`x-amz-meta-sha256` and the checksum header), so that a repeated put can tell
 *     "already done" from "somebody else's content" by a HEAD.
 */
import { CreateBucketCommand, DeleteObjectsCommand, HeadObjectCommand, ListObjectsV2Command, PutBucketVersioningCommand, S3Client } from '@aws-sdk/client-s3'
import Type from 'typebox'
import { objectStoreSettings, readConfig } from './config.ts'
import { sha256Hex } from './digest.ts'
import { Fault } from './fault.ts'
import { type ObjectAnswer, ObjectRequests } from './object-requests.ts'
import type { Bytes, EpochMs, Ms } from './units.ts'

export interface StoredObject {
  readonly bucket: string
  readonly key: string
  /** Hex. */
  readonly sha256: string
  readonly bytes: Bytes
  readonly versionId: string
}

export interface PutRequest {
  readonly bucket: string
  readonly key: string
  readonly body: Uint8Array
  readonly contentType: string
  /** Hex; computed when absent. */
  readonly sha256?: string
  readonly metadata?: Readonly<Record<string, string>>
}

export interface ObjectStore {
  /** Stores content once. An equal object that is there already counts as stored; unequal content throws `OBJECT_CONFLICT`. */
  putOnce(request: PutRequest, signal?: AbortSignal): Promise<StoredObject>
  /** Throws `OBJECT_MISSING` when there is none, and `SIZE_MISMATCH` when it is longer than `most`: that one is not read. */
  get(bucket: string, key: string, signal?: AbortSignal, most?: Bytes): Promise<Buffer>
  head(
    bucket: string,
    key: string,
    signal?: AbortSignal,
  ): Promise<{ readonly sha256: string | undefined; readonly bytes: Bytes; readonly versionId: string; readonly metadata: Readonly<Record<string, string>> } | undefined>
  list(bucket: string, prefix: string, signal?: AbortSignal): AsyncIterable<{ readonly key: string; readonly bytes: Bytes; readonly modifiedAt: EpochMs }>
  /** At most 1,000 keys; what is not there counts as removed. */
  remove(bucket: string, keys: readonly string[]): Promise<void>
  ensureBucket(bucket: string, versioned: boolean): Promise<void>
  close(): void
}

function statusOf(thrown: unknown): number | undefined {
  return (thrown as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode
}

const versionOf = ({ headers }: ObjectAnswer): string => String(headers['x-amz-version-id'] ?? '')

/** Faults of the content itself: the same bytes will be refused whenever they are sent. */
const contentFaults = new Set(['BadDigest', 'InvalidDigest', 'XAmzContentSHA256Mismatch', 'EntityTooLarge', 'KeyTooLongError', 'InvalidURI', 'MetadataTooLarge'])

/** Headers are plain ASCII: anything else is percent-encoded. */
const headerText = (text: string): string => (/^[\x20-\x7e]*$/.test(text) ? text : encodeURIComponent(text))

/**
 * Whether the store may take or give it later. Everything may but wrong content and conflicts: no answer, 5xx, 429, a conditional
 * write that ran into another one, and also keys that expired, rights or a bucket that are missing, which somebody can mend.
 */
export function isStoreTransient(thrown: unknown): boolean {
  if (thrown instanceof Fault) return thrown.code === 'OBJECT_STORE_UNAVAILABLE'
  return !contentFaults.has((thrown as Error).name)
}

/** Whether an object can have this key: it names no way up, holds no control characters and is short enough. */
function isKey(key: string): boolean {
  return key !== '' && key.length <= 1_024 && !/\p{Cc}/u.test(key) && !key.split('/').some((part) => part === '.' || part === '..')
}

export interface StoreSettings {
  readonly s3Endpoint: string
  readonly s3Region: string
  readonly awsAccessKeyId: string
  readonly awsSecretAccessKey: string
}

/** The store that environment variables name, as every process reads them. Throws `CONFIG_INVALID`. */
export function objectStoreOf(env: NodeJS.ProcessEnv): ObjectStore {
  return openObjectStore(readConfig(Type.Object(objectStoreSettings), env))
}

/** `silence`, `slowest`: as in `object-requests.ts`. */
export function openObjectStore(settings: StoreSettings, { silence = 10_000, ...link }: { readonly silence?: Ms; readonly slowest?: Bytes } = {}): ObjectStore {
  // Node 20 is supported here until it no longer is; the client says otherwise at every start
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] ??= 'true'
  const client = new S3Client({
    region: settings.s3Region,
    ...(settings.s3Endpoint ? { endpoint: settings.s3Endpoint, forcePathStyle: true } : {}),
    ...(settings.awsAccessKeyId ? { credentials: { accessKeyId: settings.awsAccessKeyId, secretAccessKey: settings.awsSecretAccessKey } } : {}),
    maxAttempts: 2,
    // the client's `requestTimeout` only writes a warning; it is the silence of the socket that ends a request and a body
    requestHandler: { connectionTimeout: 3_000, socketTimeout: silence, httpsAgent: { maxSockets: 32 }, httpAgent: { maxSockets: 32 } },
  })
  const requests = new ObjectRequests({
    ...{ endpoint: settings.s3Endpoint, region: settings.s3Region, silence, ...link },
    // of the environment or the machine where none are set; the SDK keeps them until they expire
    credentials: async () => client.config.credentials(),
  })
  const call = async <Result>(what: string, act: () => Promise<Result>): Promise<Result> => {
    try {
      return await act()
    } catch (thrown) {
      if (thrown instanceof Fault || statusOf(thrown) !== undefined) throw thrown
      throw new Fault('OBJECT_STORE_UNAVAILABLE', `The object store did not answer while ${what}`, { endpoint: settings.s3Endpoint }, thrown)
    }
  }
  const store: ObjectStore = {
    async putOnce(request, signal) {
      const sha256 = request.sha256 ?? sha256Hex(request.body)
      const { bucket, key } = request
      const bytes = request.body.byteLength
      try {
        const headers = {
          'content-type': request.contentType,
          'if-none-match': '*',
          'x-amz-checksum-sha256': Buffer.from(sha256, 'hex').toString('base64'),
          ...Object.fromEntries(Object.entries({ ...request.metadata, sha256 }).map(([name, value]) => [`x-amz-meta-${name}`, headerText(value)])),
        }
        const put = await call(`storing ${key}`, () => requests.send({ method: 'PUT', bucket, key, headers, body: request.body }, signal))
        return { bucket, key, sha256, bytes, versionId: versionOf(put) }
      } catch (thrown) {
        if (statusOf(thrown) !== 412) throw thrown
        const there = await store.head(bucket, key, signal)
        if (there?.sha256 === sha256) return { bucket, key, sha256, bytes, versionId: there.versionId }
        throw new Fault('OBJECT_CONFLICT', `${bucket}/${key} holds other content already`, { bucket, key, sha256, there: there?.sha256 }, thrown)
      }
    },
    async get(bucket, key, signal, most) {
      // an address with these would be another object's, or none
      if (!isKey(key)) throw new Fault('OBJECT_MISSING', `No object can have the key ${JSON.stringify(key.slice(0, 200))}`, { bucket })
      try {
        return (await call(`reading ${key}`, () => requests.send({ method: 'GET', bucket, key, ...(most === undefined ? {} : { most }) }, signal))).body
      } catch (thrown) {
        if (statusOf(thrown) === 404 && (thrown as Error).name !== 'NoSuchBucket') throw new Fault('OBJECT_MISSING', `${bucket}/${key} is not there`, { bucket, key }, thrown)
        throw thrown
      }
    },
    async head(bucket, key, signal) {
      try {
        const head = await call(`asking for ${key}`, () => client.send(new HeadObjectCommand({ Bucket: bucket, Key: key }), signal ? { abortSignal: signal } : {}))
        return { sha256: head.Metadata?.['sha256'], bytes: head.ContentLength ?? 0, versionId: head.VersionId ?? '', metadata: head.Metadata ?? {} }
      } catch (thrown) {
        if (statusOf(thrown) === 404) return undefined
        throw thrown
      }
    },
    async *list(bucket, prefix, signal) {
      let token: string | undefined
      do {
        const page = await call(`listing ${bucket}`, () =>
          client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: prefix, ...(token ? { ContinuationToken: token } : {}) }), signal ? { abortSignal: signal } : {}),
        )
        for (const entry of page.Contents ?? []) if (entry.Key) yield { key: entry.Key, bytes: entry.Size ?? 0, modifiedAt: entry.LastModified?.getTime() ?? 0 }
        token = page.NextContinuationToken
      } while (token)
    },
    async remove(bucket, keys) {
      const Objects = keys.map((Key) => ({ Key }))
      const { Errors = [] } = await call(`removing from ${bucket}`, () => client.send(new DeleteObjectsCommand({ Bucket: bucket, Delete: { Objects, Quiet: true } })))
      const [first] = Errors
      if (first) throw new Fault('OBJECT_STORE_UNAVAILABLE', `${Errors.length} objects were not removed, the first is ${first.Key}: ${first.Message}`)
    },
    async ensureBucket(bucket, versioned) {
      try {
        await call(`making bucket ${bucket}`, () => client.send(new CreateBucketCommand({ Bucket: bucket })))
      } catch (thrown) {
        if (!/AlreadyOwned|AlreadyExists/.test((thrown as Error).name)) throw thrown
      }
      if (versioned) await call(`versioning ${bucket}`, () => client.send(new PutBucketVersioningCommand({ Bucket: bucket, VersioningConfiguration: { Status: 'Enabled' } })))
    },
    close() {
      client.destroy()
      requests.close()
    },
  }
  return store
}
