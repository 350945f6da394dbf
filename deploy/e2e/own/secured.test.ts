/**
 * An agent that comes from outside: every connection over TLS, Kafka by SASL/SCRAM with rights of its own, the object store
 * with an identity that reaches its own cameras only. What it may not do is refused by the broker, by the store, or by
 * validate, and each time it is said what is wrong.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { request, type Server } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { sha256Hex } from '@frameloop/kit/digest'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { openObjectStore } from '@frameloop/kit/object-store'
import { openPool, type Pool } from '@frameloop/kit/postgres'
import { openCodec, recordOf } from '@frameloop/schemas/codec'
import { openRegistry } from '@frameloop/schemas/registry'
import { makeKeys, privateKeyOf, signatureHeader, signClaim } from '@frameloop/schemas/signature'
import { topics } from '@frameloop/schemas/topics'
import { newTraceparent } from '@frameloop/schemas/trace'
import { AclOperationTypes, AclPermissionTypes, AclResourceTypes, ResourcePatternTypes } from 'kafkajs'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { addAgentKey } from '../../src/agents.ts'
import { build, tools } from '../../src/home.ts'
import { freePort } from '../network-camera.ts'
import { endChild, type OwnStack, openOwnHome, startOwnStack } from '../own-stack.ts'
import { soon } from '../waiting.ts'

const run = promisify(execFile)
const home = openOwnHome()
const folder = mkdtempSync(join(tmpdir(), 'frameloop-secured-'))
const at = (name: string): string => join(folder, name)
const authority = at('ca.pem')
const [password, registryPassword] = ['pass-of-one', 'pass-of-registry']
const s3Keys = { S3_ACCESS_KEY_ID: 'agent-one', S3_SECRET_ACCESS_KEY: 'secret-of-one' }
const log = openLog('test', 'silent')
let stack: OwnStack
let pool: Pool
let gateway: ChildProcess
let registry: Server
let ports: Readonly<Record<'kafka' | 's3' | 'registry' | 'agent', number>>
let signingKey: { readonly privatePem: string; readonly publicPem: string }

/** An authority, and a certificate of this machine signed by it. */
async function makeCertificates(): Promise<void> {
  const openssl = (...args: string[]) => run('openssl', args, { cwd: folder })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  for (const name of ['ca', 'stranger']) await openssl('req', '-x509', ...key, '-days', '2', '-subj', `/CN=${name}`, '-keyout', `${name}.key`, '-out', `${name}.pem`)
  await openssl('req', ...key, '-subj', '/CN=localhost', '-keyout', 'server.key', '-out', 'server.csr')
  writeFileSync(at('names.txt'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\n')
  await openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2', '-extfile', 'names.txt', '-out', 'server.pem')
  writeFileSync(at('keystore.pem'), `${readFileSync(at('server.key'), 'utf8')}${readFileSync(at('server.pem'), 'utf8')}`)
}

/** The registry behind TLS and a password, as a gateway puts it. */
async function openRegistryDoor(to: string, port: number): Promise<Server> {
  const wanted = `Basic ${Buffer.from(`agent-one:${registryPassword}`).toString('base64')}`
  const server = createTlsServer({ key: readFileSync(at('server.key')), cert: readFileSync(at('server.pem')) }, (asked, answer) => {
    if (asked.headers.authorization !== wanted) {
      answer.writeHead(401).end()
      return
    }
    const { authorization: _, host: __, ...headers } = asked.headers
    const passed = request(new URL(asked.url ?? '', to), { method: asked.method ?? 'GET', headers }, (got) => {
      answer.writeHead(got.statusCode ?? 502, got.headers)
      got.pipe(answer)
    })
    asked.pipe(passed)
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  return server
}

/** Another door to the same store: TLS, and an identity that reaches the folder of one camera and of this agent's check. */
async function openStoreDoor(filer: number, port: number): Promise<ChildProcess> {
  const places = ['raw/site-1/door-one/*', 'raw/site-1/_checks/agent-one.*']
  const actions = places.flatMap((place) => ['Read', 'Write', 'List'].map((what) => `${what}:frameloop-raw/${place}`))
  const credentials = [{ accessKey: s3Keys.S3_ACCESS_KEY_ID, secretKey: s3Keys.S3_SECRET_ACCESS_KEY }]
  writeFileSync(at('s3.json'), JSON.stringify({ identities: [{ name: 'agent-one', credentials, actions }] }))
  const tls = [`-cert.file=${at('server.pem')}`, `-key.file=${at('server.key')}`]
  mkdirSync(at('weed'), { recursive: true })
  const args = [
    's3',
    `-filer=127.0.0.1:${filer}`,
    `-port=${port}`,
    '-ip=127.0.0.1',
    '-ip.bind=127.0.0.1',
    `-config=${at('s3.json')}`,
    '-port.iceberg=0',
    '-port.lance=0',
    `-port.grpc=${await freePort()}`,
    ...tls,
  ]
  const child = spawn(join(tools, 'python/bin/weed'), args, { cwd: at('weed'), stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk.toString('utf8')
  })
  child.once('exit', (code) => code && process.stderr.write(said))
  return child
}

async function allow(): Promise<void> {
  const admin = openKafka(stack.state.environment['KAFKA_BROKERS'] ?? '', 'test', log).admin()
  await admin.connect()
  const rule = (resourceType: AclResourceTypes, resourceName: string, operation: AclOperationTypes, resourcePatternType = ResourcePatternTypes.LITERAL) => ({
    ...{ resourceType, resourceName, operation, resourcePatternType },
    ...{ principal: 'User:agent-one', host: '*', permissionType: AclPermissionTypes.ALLOW },
  })
  const { mediaCaptured, mediaBackfill, mediaLost, agentsReported, agentsDesired } = topics
  await admin.createAcls({
    acl: [
      ...[mediaCaptured, mediaBackfill, mediaLost, agentsReported].map(({ name }) => rule(AclResourceTypes.TOPIC, name, AclOperationTypes.WRITE)),
      rule(AclResourceTypes.TOPIC, agentsDesired.name, AclOperationTypes.READ),
      rule(AclResourceTypes.GROUP, 'frameloop.agent.agent-one', AclOperationTypes.READ, ResourcePatternTypes.PREFIXED),
    ],
  })
  await admin.disconnect()
}

interface Wishes {
  readonly camera?: string
  readonly ca?: string
  readonly kafkaPassword?: string
}

function configure({ camera = 'door-one', ca = authority, kafkaPassword = password }: Wishes = {}): string {
  const file = at(`agent-${camera}.yaml`)
  const agent = {
    agent: 'agent-one',
    site: 'site-1',
    port: ports.agent,
    signingKey: `\${file:${at('signing.pem')}}`,
    spool: { folder: at('spool'), capacity: '100 MB', keepFree: '10 MB' },
  }
  const kafka = { brokers: [`localhost:${ports.kafka}`], tls: { ca }, mechanism: 'scram-sha-512', username: 'agent-one', password: kafkaPassword }
  const registryAt = { url: `https://localhost:${ports.registry}/apis/ccompat/v7`, username: 'agent-one', password: registryPassword }
  const s3 = { endpoint: `https://localhost:${ports.s3}`, accessKeyId: '${S3_ACCESS_KEY_ID}', secretAccessKey: '${S3_SECRET_ACCESS_KEY}' }
  writeFileSync(file, JSON.stringify({ ...agent, kafka, registry: registryAt, s3, cameras: [{ id: camera, address: 'simulator:?seed=4', framesPerSecond: 5 }] }))
  return file
}

const agentProgram = join(build, 'agent.mjs')
const agentEnv = { ...process.env, ...s3Keys, NODE_EXTRA_CA_CERTS: authority }

/** `frameloop-agent ARGS`: what it printed, whatever it came to. */
const command = (...args: string[]): Promise<string> =>
  run(process.execPath, [agentProgram, ...args], { env: agentEnv }).then(
    ({ stdout }) => stdout,
    (thrown: { stdout: string; stderr: string }) => `${thrown.stdout}${thrown.stderr}`,
  )

beforeAll(async () => {
  ports = { kafka: await freePort(), s3: await freePort(), registry: await freePort(), agent: await freePort() }
  await makeCertificates()
  signingKey = makeKeys()
  writeFileSync(at('signing.pem'), signingKey.privatePem)
  const settings = {
    'authorizer.class.name': 'org.apache.kafka.metadata.authorizer.StandardAuthorizer',
    // whoever is inside needs no rights; whoever comes by the other door does
    'super.users': 'User:ANONYMOUS',
    'allow.everyone.if.no.acl.found': 'false',
    'sasl.enabled.mechanisms': 'SCRAM-SHA-512',
    'listener.name.outside.scram-sha-512.sasl.jaas.config': 'org.apache.kafka.common.security.scram.ScramLoginModule required;',
    'ssl.keystore.type': 'PEM',
    'ssl.keystore.location': at('keystore.pem'),
  }
  const broker = { settings, formatting: ['--add-scram', `SCRAM-SHA-512=[name=agent-one,password=${password}]`], outside: ports.kafka }
  stack = await startOwnStack(home, ['--no-demo'], { FRAMELOOP_BROKER: JSON.stringify(broker) })
  const inner = JSON.parse(readFileSync(join(home.folder, 'ports.json'), 'utf8')) as Record<string, number>
  pool = openPool(stack.state.environment['DATABASE_URL'] ?? '', 'test', 2)
  ;[gateway, registry] = await Promise.all([
    openStoreDoor(inner['s3Filer'] ?? 0, ports.s3),
    openRegistryDoor(new URL(stack.state.environment['SCHEMA_REGISTRY_URL'] ?? '').origin, ports.registry),
    allow(),
    addAgentKey(pool, 'agent-one', signingKey.publicPem),
  ])
})

afterAll(async () => {
  // as far as it was set up
  await pool?.end()
  registry?.close()
  gateway?.kill('SIGTERM')
  rmSync(folder, { recursive: true, force: true })
  await home[Symbol.asyncDispose]()
})

test('everything goes over TLS and with a login; check says so, frames arrive, and no secret is said', async () => {
  const config = configure()
  expect(await soon(async () => ((await command('check', '--config', config)).includes('all is well') ? true : undefined))).toBe(true)
  const agent = spawn(process.execPath, [agentProgram, 'run', '--config', config], { env: agentEnv, stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  for (const stream of [agent.stdout, agent.stderr])
    stream.on('data', (chunk: Buffer) => {
      said += chunk.toString('utf8')
    })
  try {
    await soon(async () => (await pool.query("select 1 from features where camera_id = 'door-one' limit 1")).rows[0] as object | undefined)
    await soon(async () => (await pool.query("select 1 from captures where agent_id = 'agent-one' limit 1")).rows[0] as object | undefined)
  } finally {
    await endChild(agent, 'SIGTERM')
  }
  for (const secret of [password, registryPassword, s3Keys.S3_SECRET_ACCESS_KEY]) expect(said).not.toContain(secret)
})

test('a wrong password and an authority that is not trusted are told apart, with what to do', async () => {
  const refused = await command('check', '--config', configure({ kafkaPassword: 'another' }))
  expect(refused).toMatch(/wrong {2}Kafka .*SASL/)
  expect(refused).toContain('Kafka: check kafka.mechanism, username and password')
  const untrusted = await command('check', '--config', configure({ ca: at('stranger.pem') }))
  expect(untrusted).toMatch(/wrong {2}Kafka .*certificate/)
  expect(untrusted).toContain('Kafka: check kafka.tls: the authority that signed the certificates of the brokers')
  expect(`${refused}${untrusted}`).not.toContain('another')
})

test('the store refuses the folder of another agent and every other bucket', async () => {
  const before = process.env['NODE_TLS_REJECT_UNAUTHORIZED']
  process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
  const settings = { s3Endpoint: `https://localhost:${ports.s3}`, s3Region: 'us-east-1', awsAccessKeyId: s3Keys.S3_ACCESS_KEY_ID, awsSecretAccessKey: s3Keys.S3_SECRET_ACCESS_KEY }
  const store = openObjectStore(settings)
  const put = (bucket: string, key: string) => store.putOnce({ bucket, key, body: Buffer.from('x'), contentType: 'text/plain' })
  try {
    expect(await put('frameloop-raw', 'raw/site-1/door-one/x.txt')).toMatchObject({ bytes: 1 })
    // also one whose name begins like its own
    for (const camera of ['door-two', 'door-one-2']) await expect(put('frameloop-raw', `raw/site-1/${camera}/x.txt`)).rejects.toMatchObject({ name: 'AccessDenied' })
    await expect(put('frameloop-processed', 'raw/site-1/door-one/x.txt')).rejects.toMatchObject({ name: 'AccessDenied' })
    await expect(store.get('frameloop-models', 'raw/site-1/door-one/x.txt')).rejects.toMatchObject({ name: 'AccessDenied' })
  } finally {
    store.close()
    if (before === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
    else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = before
  }
})

test('an agent whose camera lies outside its folder says that it is refused, and keeps the frames', async () => {
  const agent = spawn(process.execPath, [agentProgram, 'run', '--config', configure({ camera: 'door-two' })], { env: agentEnv, stdio: ['ignore', 'pipe', 'pipe'] })
  try {
    const status = await soon(async () => {
      const shown = await command('status', '--config', at('agent-door-two.yaml'))
      return /refused/.test(shown) ? shown : undefined
    })
    expect(status).toMatch(/S3 refused/)
  } finally {
    await endChild(agent, 'SIGTERM')
  }
  expect(await command('spool', 'list', '--config', at('agent-door-two.yaml'))).toContain('door-two')
})

test('the broker refuses a topic that is not for agents, and a record in the name of another agent becomes a dead letter', async () => {
  const tls = { ca: readFileSync(authority, 'utf8') }
  const producer = openKafka({ brokers: `localhost:${ports.kafka}`, tls, sasl: { mechanism: 'scram-sha-512', username: 'agent-one', password } }, 'test', log).producer()
  await producer.connect()
  try {
    const foreign = producer.send({ topic: topics.featuresPrepared.name, acks: -1, messages: [{ key: 'door-one', value: 'x' }] })
    await expect(foreign).rejects.toThrow(/not authorized|authorization/i)

    const codec = openCodec(openRegistry(stack.state.environment['SCHEMA_REGISTRY_URL'] ?? ''))
    await addAgentKey(pool, 'agent-two', makeKeys().publicPem)
    const [epoch, sha256] = ['0192f0c1-0000-7000-8000-000000000001', sha256Hex(Buffer.from('x'))]
    const object = { bucket: 'frameloop-raw', key: 'raw/site-1/door-one/x.txt', sha256, bytes: 1, versionId: '', contentType: 'image/jpeg' }
    let seq = 0
    const rejected = await soon(async () => {
      seq += 1
      // signed, but by whoever sends it
      const claim = { siteId: 'site-1', agentId: 'agent-two', cameraId: 'door-two', epoch, seq, capturedAt: Date.now(), sha256 }
      const mediaId = `0192f0c1-0000-7000-8000-${String(seq).padStart(12, '0')}`
      const { sha256: _, ...said } = claim
      const media = { ...said, mediaId, lane: 'live', source: 'camera', kind: 'image', mediaOffsetUs: null, object, width: 0, height: 0, motion: null, sourceName: 'forged' }
      const about = { key: 'door-two', id: mediaId, time: claim.capturedAt, source: 'agent-two', traceparent: newTraceparent() }
      const record = await recordOf(codec, topics.mediaCaptured, media, about)
      const headers = { ...record.headers, [signatureHeader]: signClaim(claim, privateKeyOf(signingKey.privatePem)) }
      await producer.send({ topic: topics.mediaCaptured.name, acks: -1, messages: [{ ...record, headers }] })
      const { rows } = await pool.query<{ reason: string; message: string }>("select reason, message from dead_letters where subject_id::text like '0192f0c1-%'")
      return rows.find(({ reason }) => reason === 'SIGNATURE_INVALID')
    })
    expect(rejected.message).toContain('agent-two')
  } finally {
    await producer.disconnect()
  }
})
