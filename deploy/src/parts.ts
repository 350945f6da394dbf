/** The backing services of the embedded stack as programs: Kafka, schema registry, S3, MLflow. Real ones, ready when a real operation works. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3'
import { openKafka } from '@frameloop/kit/kafka'
import { openLog } from '@frameloop/kit/log'
import { brokerCacheFlags, brokerClassPath, javaFlags, javaProgram } from '../setup/java.mjs'
import { type Home, tools } from './home.ts'
import type { Program } from './supervisor.ts'

const run = promisify(execFile)
const python = join(tools, 'python')

const log4j = `status=error
appender.f.type=File
appender.f.name=f
appender.f.fileName=\${sys:kafka.logs.dir}/kafka-server.log
appender.f.append=false
appender.f.layout.type=PatternLayout
appender.f.layout.pattern=%d{ISO8601} %p %m (%c)%n
rootLogger.level=WARN
rootLogger.appenderRef.f.ref=f
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=INFO
`

/** What somebody wants of the broker beside what it needs here: a listener with TLS, rights, users. */
export interface BrokerExtras {
  /** `server.properties`; they win. */
  readonly settings?: Readonly<Record<string, string>>
  /** Of `StorageTool format`, when its folder is new: `--add-scram`. */
  readonly formatting?: readonly string[]
  /** A listener of its own for those who come from elsewhere, over TLS and with SASL; its port. */
  readonly outside?: number
}

/** Apache Kafka 4.4 (KRaft, one node). Small internal topics and a short session, so that it is back within seconds after a crash. `advertisedPort`: where clients are told to go. */
export async function prepareKafka(
  home: Home,
  port: number,
  controllerPort: number,
  advertisedPort = port,
  { settings: further, formatting = [], outside }: BrokerExtras = {},
): Promise<Program> {
  const folder = home.path('kafka')
  const data = join(folder, 'data')
  mkdirSync(folder, { recursive: true })
  const settings: Record<string, string | number | boolean> = {
    'process.roles': 'broker,controller',
    'node.id': 1,
    'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
    listeners: `PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controllerPort}${outside ? `,OUTSIDE://127.0.0.1:${outside}` : ''}`,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${advertisedPort}${outside ? `,OUTSIDE://localhost:${outside}` : ''}`,
    'controller.listener.names': 'CONTROLLER',
    'inter.broker.listener.name': 'PLAINTEXT',
    'listener.security.protocol.map': 'CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,OUTSIDE:SASL_SSL',
    'log.dirs': data,
    'num.partitions': 6,
    'default.replication.factor': 1,
    'offsets.topic.replication.factor': 1,
    'offsets.topic.num.partitions': 4,
    'transaction.state.log.replication.factor': 1,
    'transaction.state.log.min.isr': 1,
    'transaction.state.log.num.partitions': 4,
    // read from its beginning after a crash (`hanging-transactions.ts`)
    'transaction.state.log.segment.bytes': 16_777_216,
    'share.coordinator.state.topic.replication.factor': 1,
    'share.coordinator.state.topic.min.isr': 1,
    'share.coordinator.state.topic.num.partitions': 4,
    'group.initial.rebalance.delay.ms': 0,
    'auto.create.topics.enable': false,
    'log.message.timestamp.type': 'LogAppendTime',
    'message.max.bytes': 9_000_000,
    // the newest one of each partition is read when the broker comes back after a crash
    'log.segment.bytes': 67_108_864,
    'num.network.threads': 2,
    'num.io.threads': 4,
    'num.recovery.threads.per.data.dir': 2,
    'controlled.shutdown.enable': true,
    // the broker that was killed must time out before the new one may take its place
    'broker.session.timeout.ms': 4_000,
    'broker.heartbeat.interval.ms': 250,
    'log.cleaner.dedupe.buffer.size': 16_777_216,
    ...further,
  }
  const properties = join(folder, 'server.properties')
  writeFileSync(
    properties,
    `${Object.entries(settings)
      .map(([name, value]) => `${name}=${value}`)
      .join('\n')}\n`,
  )
  const logging = join(folder, 'log4j2.properties')
  writeFileSync(logging, log4j)
  const common = [...javaFlags, `-Dkafka.logs.dir=${home.logs}`, `-Dlog4j2.configurationFile=${logging}`, '-cp', brokerClassPath()]
  if (!existsSync(join(data, 'meta.properties'))) {
    // a cluster id must not begin with a dash
    const clusterId = `f${randomBytes(16).toString('base64url').slice(0, 21)}`
    await run(javaProgram(), ['-Xmx128m', ...common, 'kafka.tools.StorageTool', 'format', '-t', clusterId, '-c', properties, '--ignore-formatted', ...formatting])
  }
  const log = openLog('stack', 'error')
  return {
    name: 'kafka',
    command: javaProgram(),
    args: ['-Xms128m', '-Xmx256m', ...brokerCacheFlags(), ...common, 'kafka.Kafka', properties],
    ready: async () => {
      const admin = openKafka(`127.0.0.1:${port}`, 'stack', log).admin()
      try {
        await admin.connect()
        return (await admin.describeCluster()).brokers.length > 0
      } finally {
        await admin.disconnect().catch(() => {})
      }
    },
  }
}

/** Apicurio on PostgreSQL, spoken to through its Confluent API. */
export function registryProgram(
  port: number,
  managementPort: number,
  database: { readonly host: string; readonly port: number; readonly name: string; readonly user: string; readonly password: string },
): Program {
  return {
    name: 'registry',
    command: javaProgram(),
    args: [
      '-Xmx256m',
      ...javaFlags,
      '-Dquarkus.http.host=127.0.0.1',
      `-Dquarkus.http.port=${port}`,
      '-Dquarkus.management.host=127.0.0.1',
      `-Dquarkus.management.port=${managementPort}`,
      '-Dquarkus.http.access-log.enabled=false',
      '-jar',
      'quarkus-run.jar',
    ],
    cwd: join(tools, 'apicurio'),
    env: {
      APICURIO_STORAGE_SQL_KIND: 'postgresql',
      APICURIO_DATASOURCE_URL: `jdbc:postgresql://${database.host}:${database.port}/${database.name}`,
      APICURIO_DATASOURCE_USERNAME: database.user,
      APICURIO_DATASOURCE_PASSWORD: database.password,
      APICURIO_DATASOURCE_JDBC_INITIAL_SIZE: '2',
      APICURIO_DATASOURCE_JDBC_MIN_SIZE: '2',
      APICURIO_DATASOURCE_JDBC_MAX_SIZE: '10',
    },
    ready: async () => (await fetch(`http://127.0.0.1:${port}/apis/ccompat/v7/subjects`, { signal: AbortSignal.timeout(2_000) })).ok,
  }
}

export interface S3Identity {
  readonly accessKeyId: string
  readonly secretAccessKey: string
}

export interface S3Ports {
  readonly s3: number
  readonly master: number
  readonly volume: number
  readonly filer: number
  readonly admin: number
  readonly metrics: number
}

/** SeaweedFS in one process. The agent gets an identity of its own that reaches the raw bucket only. */
export function s3Program(home: Home, ports: S3Ports, identities: { readonly cloud: S3Identity; readonly edge: S3Identity }, rawBucket: string): Program {
  const folder = home.path('s3')
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const config = join(folder, 's3.json')
  const identity = (name: string, { accessKeyId, secretAccessKey }: S3Identity, actions: readonly string[]) => ({
    name,
    credentials: [{ accessKey: accessKeyId, secretKey: secretAccessKey }],
    actions,
  })
  writeFileSync(
    config,
    JSON.stringify({
      identities: [
        identity('cloud', identities.cloud, ['Admin', 'Read', 'Write', 'List', 'Tagging']),
        identity('edge', identities.edge, [`Write:${rawBucket}`, `Read:${rawBucket}`, `List:${rawBucket}`]),
      ],
    }),
    { mode: 0o600 },
  )
  const client = new S3Client({ endpoint: `http://127.0.0.1:${ports.s3}`, region: 'us-east-1', forcePathStyle: true, credentials: identities.cloud, maxAttempts: 1 })
  return {
    name: 's3',
    command: join(python, 'bin/weed'),
    args: [
      'mini',
      `-dir=${folder}`,
      '-ip=127.0.0.1',
      '-ip.bind=127.0.0.1',
      `-master.port=${ports.master}`,
      `-volume.port=${ports.volume}`,
      `-filer.port=${ports.filer}`,
      `-s3.port=${ports.s3}`,
      `-admin.port=${ports.admin}`,
      `-metricsPort=${ports.metrics}`,
      '-metricsIp=127.0.0.1',
      `-s3.config=${config}`,
      '-webdav=false',
      '-admin.ui=false',
      '-s3.port.iceberg=0',
      '-s3.port.lance=0',
      '-master.telemetry=false',
      // its only volume server tells it everything anew; resuming makes 2 of 24 starts wait 15 s for others ("master is warming up")
      '-master.resumeState=false',
    ],
    cwd: folder,
    ready: async () => {
      const request = { abortSignal: AbortSignal.timeout(3_000) }
      await client.send(new CreateBucketCommand({ Bucket: 'frameloop-probe' }), request).catch((thrown: Error) => {
        if (!/AlreadyOwned|AlreadyExists/.test(thrown.name)) throw thrown
      })
      await client.send(new PutObjectCommand({ Bucket: 'frameloop-probe', Key: 'probe', Body: 'x' }), request)
      return true
    },
  }
}

/**
 * MLflow 3.17.2 served by uvicorn directly: half the start time and memory of its command line, which only sets these
 * variables and starts the same application. They are MLflow's own names, safe with the pinned version.
 */
export function mlflowProgram(
  port: number,
  databaseUrl: string,
  s3: { readonly endpoint: string; readonly region: string; readonly identity: S3Identity; readonly bucket: string },
): Program {
  const store = databaseUrl.replace(/^postgres:/, 'postgresql+psycopg2:')
  return {
    name: 'mlflow',
    command: join(python, 'bin/python'),
    args: ['-m', 'uvicorn', '--host', '127.0.0.1', '--port', String(port), '--workers', '1', '--log-level', 'warning', 'mlflow.server.fastapi_app:app'],
    env: {
      _MLFLOW_SERVER_FILE_STORE: store,
      _MLFLOW_SERVER_REGISTRY_STORE: store,
      _MLFLOW_SERVER_ARTIFACT_ROOT: 'mlflow-artifacts:/',
      _MLFLOW_SERVER_SERVE_ARTIFACTS: 'true',
      _MLFLOW_SERVER_ARTIFACT_DESTINATION: `s3://${s3.bucket}`,
      _MLFLOW_SGI_NAME: 'uvicorn',
      _MLFLOW_IN_JOB_EXECUTOR: 'false',
      MLFLOW_SERVER_ALLOWED_HOSTS: `127.0.0.1:${port},localhost:${port}`,
      MLFLOW_SERVER_ENABLE_JOB_EXECUTION: 'false',
      MLFLOW_S3_ENDPOINT_URL: s3.endpoint,
      AWS_ACCESS_KEY_ID: s3.identity.accessKeyId,
      AWS_SECRET_ACCESS_KEY: s3.identity.secretAccessKey,
      AWS_DEFAULT_REGION: s3.region,
      AWS_EC2_METADATA_DISABLED: 'true',
      MLFLOW_DISABLE_TELEMETRY: 'true',
      DO_NOT_TRACK: 'true',
      PYTHONUNBUFFERED: '1',
    },
    // /health answers before the database is touched; this call makes the tables
    ready: async () =>
      (
        await fetch(`http://127.0.0.1:${port}/api/2.0/mlflow/experiments/search`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: '{"max_results":1}',
          signal: AbortSignal.timeout(20_000),
        })
      ).ok,
  }
}
