/** `frameloop-agent check`: everything the agent will need, asked for real, each with what to do when it is missing. */
import { execFile } from 'node:child_process'
import { closeSync, fdatasyncSync, mkdirSync, openSync, rmSync, statfsSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { rootMessage } from '@frameloop/kit/fault'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog, redact } from '@frameloop/kit/log'
import { showBytes, showMs } from '@frameloop/kit/units'
import { schemaTexts } from '@frameloop/schemas/events'
import { bucketName, checkKey } from '@frameloop/schemas/object-keys'
import { privateKeyOf } from '@frameloop/schemas/signature'
import { subjectOf, topics } from '@frameloop/schemas/topics'
import { clockSkew } from './clock.ts'
import { type AgentSettings, bytesOf } from './config.ts'
import { clocksOf, kafkaOf, registryOf, storeOf } from './connections.ts'
import { takeSnapshot } from './snapshot.ts'
import { showTable } from './table.ts'

export interface Check {
  readonly what: string
  readonly verdict: 'good' | 'look' | 'wrong'
  readonly found: string
  /** What to do; empty when nothing. */
  readonly todo: string
}

const good = (what: string, found: string): Check => ({ what, verdict: 'good', found, todo: '' })
const wrong = (what: string, thrown: unknown, todo: string): Check => ({ what, verdict: 'wrong', found: redact(rootMessage(thrown)), todo })

/** At most this long each. */
const limit = 20_000
function bounded<Result>(promise: Promise<Result>): Promise<Result> {
  return Promise.race([promise, new Promise<never>((_, reject) => setTimeout(() => reject(new Error(`no answer within ${limit / 1000} s`)), limit).unref())])
}

async function checkFfmpeg({ ffmpeg, ffprobe }: AgentSettings): Promise<Check> {
  const todo = 'install ffmpeg 5 or newer (apt install ffmpeg), or name it with the settings ffmpeg and ffprobe'
  try {
    const [{ stdout }] = await Promise.all([promisify(execFile)(ffmpeg, ['-version']), promisify(execFile)(ffprobe, ['-version'])])
    const version = /version (\S+)/.exec(stdout)?.[1] ?? ''
    // builds from git have names without a number
    const major = Number(/^n?(\d+)\./.exec(version)?.[1] ?? Number.NaN)
    return major < 5 ? { what: 'ffmpeg', verdict: 'wrong', found: `version ${version}`, todo } : good('ffmpeg', `version ${version}`)
  } catch (thrown) {
    return wrong('ffmpeg', thrown, todo)
  }
}

function checkDisk({ spool }: AgentSettings): Check {
  const { folder } = spool
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 })
    const path = join(folder, '.check')
    const file = openSync(path, 'w', 0o600)
    const since = performance.now()
    try {
      for (let at = 0; at < 5; at += 1) {
        writeSync(file, Buffer.alloc(100_000, at))
        fdatasyncSync(file)
      }
    } finally {
      closeSync(file)
      rmSync(path)
    }
    const each = (performance.now() - since) / 5
    const { bavail, bsize } = statfsSync(folder)
    const [free, wanted] = [bavail * bsize, bytesOf(spool.capacity) + bytesOf(spool.keepFree)]
    const found = `${folder}: ${showBytes(free)} free, 100 kB durable in ${showMs(each)}`
    return free < wanted
      ? { what: 'disk', verdict: 'look', found, todo: `spool.capacity and keepFree want ${showBytes(wanted)}: less will wait than they say` }
      : each > 200
        ? { what: 'disk', verdict: 'look', found, todo: 'this disk is slow: several cameras at a high rate may not fit' }
        : good('disk', found)
  } catch (thrown) {
    return wrong('disk', thrown, `make ${folder} a folder that this user may write to`)
  }
}

async function checkClock(config: AgentSettings): Promise<Check> {
  const told = await clockSkew(clocksOf(config))
  if (!told) return { what: 'clock', verdict: 'look', found: 'no server told its time', todo: 'see the lines of S3 and registry' }
  const { skew, host } = told
  if (Math.abs(skew) < 1_500) return good('clock', 'right')
  const found = `${showMs(Math.abs(skew))} ${skew > 0 ? 'ahead of' : 'behind'} ${host}`
  return Math.abs(skew) > 60_000
    ? { what: 'clock', verdict: 'wrong', found, todo: 'set the clock (timedatectl set-ntp true): S3 refuses requests that are 15 minutes off' }
    : good('clock', found)
}

async function checkStore(config: AgentSettings): Promise<Check> {
  const bucket = bucketName(config.s3.bucketPrefix, 'raw')
  let store: ReturnType<typeof storeOf> | undefined
  try {
    store = storeOf(config)
    // the same content under the same key each time: a check leaves one small object behind, however often it is made
    await bounded(store.putOnce({ bucket, key: checkKey(config.site, config.agent), body: Buffer.from('frameloop-agent check\n'), contentType: 'text/plain' }))
    return good('S3', `${bucket} takes objects`)
  } catch (thrown) {
    const name = (thrown as Error).name
    const todo =
      name === 'NoSuchBucket'
        ? `make the bucket ${bucket}: \`frameloop provision\` in the cloud does`
        : /AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch/.test(name)
          ? 'check s3.accessKeyId and s3.secretAccessKey, and that they may put objects there'
          : 'check s3.endpoint and the way there'
    return { ...wrong('S3', thrown, todo), found: `${name === 'Fault' ? '' : `${name}: `}${redact(rootMessage(thrown))}` }
  } finally {
    store?.close()
  }
}

async function checkKafka(config: AgentSettings): Promise<Check> {
  let admin: ReturnType<ReturnType<typeof openKafka>['admin']> | undefined
  const names = [topics.mediaCaptured, topics.mediaBackfill, topics.mediaLost, topics.agentsReported, topics.agentsDesired].map(({ name }) => name)
  try {
    admin = openKafka(kafkaOf(config), config.agent, openLog('check', 'silent')).admin()
    await bounded(admin.connect())
    const { topics: there } = await bounded(admin.fetchTopicMetadata({ topics: names }))
    return good('Kafka', `${config.kafka.brokers.join(', ')}: ${there.length} topics`)
  } catch (thrown) {
    const said = rootMessage(thrown)
    const todo = /authentication|SASL/i.test(said)
      ? 'check kafka.mechanism, username and password'
      : /certificate|TLS|SSL|ENOENT|EACCES/i.test(said)
        ? 'check kafka.tls: the authority that signed the certificates of the brokers'
        : /authorized/i.test(said)
          ? 'let this user write to the topics media.* and agents.reported, and read agents.desired'
          : /not host this topic/i.test(said)
            ? 'make the topics: `frameloop provision` in the cloud does'
            : 'check kafka.brokers and the way there'
    return wrong('Kafka', thrown, todo)
  } finally {
    await admin?.disconnect().catch(() => {})
  }
}

async function checkRegistry(config: AgentSettings): Promise<Check> {
  try {
    const { mediaCaptured } = topics
    const id = await bounded(registryOf(config).register(subjectOf(mediaCaptured.name), schemaTexts[mediaCaptured.event]))
    return good('registry', `${mediaCaptured.name} is schema ${id}`)
  } catch (thrown) {
    return wrong('registry', thrown, 'check registry.url (it ends in /apis/ccompat/v7 for Apicurio) and the login')
  }
}

async function checkCamera(config: AgentSettings, id: string): Promise<Check> {
  const since = performance.now()
  try {
    const { width, height, bytes, extension } = await bounded(takeSnapshot(config, id))
    return good(`camera ${id}`, `${width}x${height} ${extension}, ${showBytes(bytes.length)}, first picture after ${showMs(performance.now() - since)}`)
  } catch (thrown) {
    const said = rootMessage(thrown)
    const todo = /\(401\)/.test(said)
      ? 'correct username and password of the camera'
      : /\(404\)/.test(said)
        ? 'correct the path in its address'
        : /answers at the camera address|no picture/.test(said)
          ? 'is it switched on, and is its address right?'
          : 'correct its address'
    return wrong(`camera ${id}`, thrown, todo)
  }
}

/** What this agent announces is signed with, where it has a key. */
function checkSigningKey({ signingKey }: AgentSettings): Check[] {
  if (!signingKey) return []
  try {
    privateKeyOf(signingKey)
    return [good('signing key', 'an Ed25519 key')]
  } catch (thrown) {
    return [wrong('signing key', thrown, '`frameloop-agent make-key FILE` makes one; name it with signingKey: ${file:FILE}')]
  }
}

export async function checkAll(config: AgentSettings): Promise<Check[]> {
  const program = await checkFfmpeg(config)
  return Promise.all([
    program,
    checkDisk(config),
    checkClock(config),
    checkStore(config),
    checkKafka(config),
    checkRegistry(config),
    ...checkSigningKey(config),
    ...config.cameras.map(({ id }) => checkCamera(config, id)),
  ])
}

export function showChecks(checks: readonly Check[]): string {
  const table = showTable(
    ['', 'what', 'found'],
    checks.map(({ verdict, what, found }) => [verdict, what, found]),
  )
  const todo = checks.filter((check) => check.todo !== '').map(({ what, todo: text }) => `  ${what}: ${text}`)
  return todo.length === 0 ? `${table}\nall is well` : `${table}\nto do:\n${todo.join('\n')}`
}
