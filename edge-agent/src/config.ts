/**
 * The agent's one file, YAML. Read as a whole or refused as a whole: every problem at once, with its line, the value
 * found and an example. `${NAME}` in a text is an environment variable, `${file:/path}` the content of a file: secrets
 * stay where they belong.
 */
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { Fault, toError } from '@frameloop/kit/fault'
import { redact } from '@frameloop/kit/log'
import type { Bytes } from '@frameloop/kit/units'
import { namePattern } from '@frameloop/schemas/ids'
import type { Static } from 'typebox'
import Type from 'typebox'
import Value from 'typebox/value'
import { LineCounter, parseDocument, parse as parseYaml } from 'yaml'

const text = (description: string, example: string, more: object = {}) => Type.String({ minLength: 1, description, examples: [example], ...more })
const size = (description: string, example: string, more: object = {}) =>
  text(description, example, { pattern: '^\\d+(\\.\\d+)? ?(B|kB|MB|GB|TB)$', says: 'must be a number and a unit from B to TB', ...more })
const named = { pattern: namePattern, says: 'must be letters, digits, dots, dashes or underscores, 64 at most' } as const
const strict = { additionalProperties: false } as const
/** A rectangle in shares of the picture, so that it survives another resolution. */
const share = Type.Number({ minimum: 0, maximum: 1 })
const Area = Type.Tuple([share, share, share, share], { description: '[left, top, width, height] in shares of the picture', examples: ['[0.5, 0, 0.5, 0.25]'] })

export const MotionConfig = Type.Object(
  {
    threshold: Type.Number({ exclusiveMinimum: 0, maximum: 1, default: 0.004, description: 'share of the watched picture that must change', examples: [0.004] }),
    hold: Type.Number({ minimum: 0, default: 2, description: 'seconds to go on after the last motion', examples: [2] }),
    heartbeat: Type.Number({ minimum: 0, default: 60, description: 'seconds between pictures when nothing moves; 0: none', examples: [60] }),
    areas: Type.Array(Area, { default: [], description: 'where motion counts; empty: everywhere' }),
    ignore: Type.Array(Area, { default: [], description: 'where motion does not count: trees, clocks, screens' }),
    burst: Type.Optional(
      Type.Object(
        {
          framesPerSecond: Type.Number({ exclusiveMinimum: 0, maximum: 60, description: 'pictures kept a second when motion begins', examples: [15] }),
          seconds: Type.Number({ exclusiveMinimum: 0, maximum: 60, default: 2, description: 'how long', examples: [2] }),
        },
        { ...strict, description: 'more pictures when motion begins', examples: ['{ framesPerSecond: 15 }'] },
      ),
    ),
  },
  strict,
)
export type Motion = Static<typeof MotionConfig>

export const ClipsConfig = Type.Object(
  {
    before: Type.Number({ minimum: 0, maximum: 60, default: 5, description: 'seconds before the event', examples: [5] }),
    after: Type.Number({ minimum: 1, maximum: 300, default: 5, description: 'seconds after the last motion', examples: [5] }),
    longest: Type.Number({ minimum: 2, maximum: 600, default: 60, description: 'seconds; motion that lasts longer makes another clip', examples: [60] }),
    onMotion: Type.Boolean({ default: true, description: 'a clip of every motion; otherwise only on command', examples: [false] }),
  },
  strict,
)
export type Clips = Static<typeof ClipsConfig>

/** Pictures kept a second where nothing is said. */
const usualRate = 5

export const CameraConfig = Type.Object(
  {
    id: text('name of the camera, unique in the installation', 'door', named),
    address: text('rtsp://, onvif://, http:// (MJPEG or snapshot), v4l2:/dev/video0, file:, folder: or simulator:', 'rtsp://10.0.0.7/stream'),
    username: Type.Optional(text('of the camera', 'viewer')),
    password: Type.Optional(text('of the camera', '${file:/etc/frameloop-agent/door.password}')),
    framesPerSecond: Type.Optional(Type.Number({ exclusiveMinimum: 0, maximum: 60, description: 'pictures kept a second', examples: [5] })),
    transport: Type.Optional(Type.Union([Type.Literal('tcp'), Type.Literal('udp')], { description: 'of RTSP', examples: ['tcp'] })),
    motion: Type.Optional(MotionConfig),
    clips: Type.Optional(ClipsConfig),
    masks: Type.Optional(Type.Array(Area, { description: 'blackened before anything is written to disk', examples: ['[[0, 0, 0.3, 0.2]]'] })),
    width: Type.Optional(Type.Integer({ minimum: 16, maximum: 16_384, description: 'pictures are made smaller to this width', examples: [1280] })),
    quality: Type.Optional(Type.Integer({ minimum: 2, maximum: 31, description: "ffmpeg's JPEG scale, 2 best", examples: [3] })),
  },
  strict,
)
export type CameraSettings = Static<typeof CameraConfig>

/** Pictures a second: kept, and asked of the source. */
export function ratesOf({ framesPerSecond = usualRate, motion }: CameraSettings): { readonly kept: number; readonly asked: number } {
  return { kept: framesPerSecond, asked: motion?.burst?.framesPerSecond ?? framesPerSecond }
}

const Login = { username: Type.Optional(text('user name', 'agent-1')), password: Type.Optional(text('password', '${file:/etc/frameloop-agent/kafka.password}')) }

export const AgentConfig = Type.Object(
  {
    agent: text('name of this agent, unique in the installation', 'agent-1', named),
    site: Type.String({ ...named, default: 'site-1', description: 'where the cameras are', examples: ['warehouse-2'] }),
    logLevel: Type.Union(
      (['debug', 'info', 'warn', 'error'] as const).map((level) => Type.Literal(level)),
      { default: 'info', description: 'how much is logged', examples: ['info'] },
    ),
    signingKey: Type.Optional(text('PEM of an Ed25519 private key: what this agent announces is signed with it', '${file:/etc/frameloop-agent/signing.pem}')),
    host: Type.String({ default: '127.0.0.1', description: 'address of status and metrics', examples: ['127.0.0.1'] }),
    port: Type.Integer({ minimum: 0, maximum: 65_535, default: 9180, description: 'port of status and metrics; 0 takes a free one', examples: [9180] }),
    ffmpeg: Type.String({ default: 'ffmpeg', description: 'ffmpeg 5 or newer', examples: ['/usr/bin/ffmpeg'] }),
    ffprobe: Type.String({ default: 'ffprobe', description: 'ffprobe of the same ffmpeg', examples: ['/usr/bin/ffprobe'] }),
    spool: Type.Object(
      {
        folder: text('folder of the durable queue', '/var/lib/frameloop-agent/spool'),
        capacity: size('what waiting frames may take', '20 GB', { default: '2 GB' }),
        keepFree: size('what stays free on the disk, whatever the capacity', '1 GB', { default: '200 MB' }),
      },
      strict,
    ),
    kafka: Type.Object(
      {
        brokers: Type.Array(text('host:port', 'kafka.example.com:9093'), { minItems: 1, description: 'host:port of the brokers', examples: ['[kafka.example.com:9093]'] }),
        tls: Type.Optional(
          Type.Object(
            {
              ca: Type.Optional(text('PEM file of the authority', '/etc/frameloop-agent/ca.pem')),
              cert: Type.Optional(text('PEM file', '/etc/frameloop-agent/cert.pem')),
              key: Type.Optional(text('PEM file', '/etc/frameloop-agent/key.pem')),
            },
            { ...strict, description: '{} trusts the authorities of the system', examples: ['{}'] },
          ),
        ),
        mechanism: Type.Optional(
          Type.Union(
            (['plain', 'scram-sha-256', 'scram-sha-512'] as const).map((name) => Type.Literal(name)),
            { description: 'SASL', examples: ['scram-sha-512'] },
          ),
        ),
        ...Login,
      },
      { ...strict, examples: ['{ brokers: [kafka.example.com:9093] }'] },
    ),
    registry: Type.Object(
      { url: text('Confluent-compatible API of the schema registry', 'https://registry.example.com/apis/ccompat/v7', { pattern: '^https?://' }), ...Login },
      { ...strict, examples: ['{ url: https://registry.example.com/apis/ccompat/v7 }'] },
    ),
    s3: Type.Object(
      {
        endpoint: Type.String({ default: '', description: 'empty means AWS', examples: ['https://s3.example.com'] }),
        region: Type.String({ default: 'us-east-1', description: 'S3 region', examples: ['eu-central-1'] }),
        accessKeyId: Type.String({ default: '', description: 'empty takes the ambient AWS credentials', examples: ['${S3_ACCESS_KEY_ID}'] }),
        secretAccessKey: Type.String({ default: '', description: 'secret key', examples: ['${file:/etc/frameloop-agent/s3.secret}'] }),
        bucketPrefix: Type.String({ default: 'frameloop', pattern: '^[a-z0-9-]+$', description: 'frames go to the bucket PREFIX-raw', examples: ['frameloop'] }),
      },
      { ...strict, default: {} },
    ),
    uploads: Type.Object(
      {
        concurrency: Type.Integer({ minimum: 1, maximum: 64, default: 6, description: 'uploads at a time', examples: [6] }),
        limit: Type.Optional(size('most bytes a second', '2 MB')),
        windows: Type.Array(
          text("'HH:MM-HH:MM' of the machine's clock", "'22:00-06:00'", { pattern: '^([01]\\d|2[0-3]):[0-5]\\d-([01]\\d|2[0-3]):[0-5]\\d$', says: "must be 'HH:MM-HH:MM'" }),
          {
            default: [],
            description: 'when frames go out; empty: always',
            examples: ["['22:00-06:00']"],
          },
        ),
        outside: Type.Union(
          (['live', 'nothing'] as const).map((what) => Type.Literal(what)),
          { default: 'nothing', description: 'what goes out at other times', examples: ['live'] },
        ),
      },
      { ...strict, default: {} },
    ),
    cameras: Type.Array(CameraConfig, { minItems: 1, description: 'the cameras', examples: ['[{ id: door, address: rtsp://10.0.0.7/stream }]'] }),
  },
  strict,
)
export type AgentSettings = Static<typeof AgentConfig>

/** `20 GB` → 20000000000. */
export function bytesOf(shown: string): Bytes {
  const [, number = '0', unit = 'B'] = /^([\d.]+) ?(\w+)$/.exec(shown) ?? []
  return Math.round(Number(number) * 1000 ** ['B', 'kB', 'MB', 'GB', 'TB'].indexOf(unit))
}

/** For those who need no secret, and may not be able to read any: what leads nowhere stays as it is written. */
export const withoutSecrets = 'without secrets'
type Secrets = NodeJS.ProcessEnv | typeof withoutSecrets

/** Where `${…}` leads. Throws with a sentence when there is nothing. */
function substitute(value: string, secrets: Secrets): string {
  return value.replace(/\$\{(file:)?([^}]+)\}/g, (written, isFile: string | undefined, name: string) => {
    if (secrets === withoutSecrets) return isFile ? written : (process.env[name] ?? written)
    const env = secrets
    if (!isFile) {
      const found = env[name]
      if (found === undefined) throw new Error(`names the environment variable ${name}, which is not set`)
      return found
    }
    try {
      return readFileSync(name, 'utf8').trim()
    } catch (thrown) {
      throw new Error(`names a file that cannot be read: ${toError(thrown).message}`)
    }
  })
}

type Path = readonly (string | number)[]
const showPath = (path: Path): string => path.reduce<string>((shown, part) => (typeof part === 'number' ? `${shown}[${part}]` : shown ? `${shown}.${part}` : part), '')
const isSecret = (path: Path): boolean => /password|secret/i.test(String(path.at(-1)))

/** Whether what stands at a JSON pointer is still `${…}`. */
function isReference(pointer: string, value: unknown): boolean {
  const at = pointer
    .split('/')
    .slice(1)
    .reduce<unknown>((of, part) => (of as Record<string, unknown> | undefined)?.[part], value)
  return typeof at === 'string' && at.includes('${')
}

interface Described {
  /** What its pattern means. */
  readonly says?: string
  readonly description?: string
  readonly examples?: readonly unknown[]
  readonly properties?: Readonly<Record<string, Described>>
  readonly items?: Described | readonly Described[]
}

function describedAt(path: Path): Described {
  return path.reduce<Described>(
    (at, part) => (typeof part === 'number' ? (Array.isArray(at.items) ? at : ((at.items as Described | undefined) ?? {})) : (at.properties?.[part] ?? {})),
    AgentConfig as Described,
  )
}

const explain = ({ description, examples }: Described): string =>
  `${description ? ` (${description})` : ''}${examples?.[0] === undefined ? '' : `, for example ${typeof examples[0] === 'string' ? examples[0] : JSON.stringify(examples[0])}`}`

/** The key that somebody may have meant. */
function similar(name: string, known: readonly string[]): string | undefined {
  const plain = (of: string): string => of.toLowerCase().replace(/[^a-z]/g, '')
  return known.find((candidate) => plain(candidate) === plain(name)) ?? known.find((candidate) => plain(candidate).startsWith(plain(name).slice(0, 4)) && name.length >= 4)
}

/** The settings in a text. Throws `CONFIG_INVALID` with every problem; `name` is what the text is called in it. */
export function parseAgentConfig(source: string, name: string, secrets: Secrets = process.env): AgentSettings {
  const lines = new LineCounter()
  const document = parseDocument(source, { lineCounter: lines, prettyErrors: false })
  const problems = new Map<string, { readonly line: number; readonly sentence: string }>()
  const lineOf = (path: Path): number => {
    for (let length = path.length; length > 0; length -= 1) {
      const node = document.getIn(path.slice(0, length), true) as { range?: readonly number[] } | undefined
      if (node?.range) return lines.linePos(node.range[0] ?? 0).line
    }
    return 0
  }
  const found = (path: Path, sentence: string, line = lineOf(path)): void => {
    const shown = showPath(path)
    if (!problems.has(shown)) problems.set(shown, { line, sentence: `${shown}${shown ? ' ' : ''}${sentence}` })
  }
  const settle = (): never => {
    const list = [...problems.values()].sort((a, b) => a.line - b.line).map(({ line, sentence }) => `${line > 0 ? `line ${line}: ` : ''}${redact(sentence)}`)
    throw new Fault('CONFIG_INVALID', `${name} has ${list.length === 1 ? 'a problem' : `${list.length} problems`}:\n  ${list.join('\n  ')}`)
  }
  for (const error of document.errors) problems.set(`yaml ${error.pos[0]}`, { line: lines.linePos(error.pos[0]).line, sentence: error.message })
  if (problems.size > 0) settle()

  const filled = (value: unknown, path: Path): unknown => {
    if (typeof value === 'string') {
      try {
        return substitute(value, secrets)
      } catch (thrown) {
        found(path, toError(thrown).message)
        return value
      }
    }
    if (Array.isArray(value)) return value.map((item, at) => filled(item, [...path, at]))
    if (typeof value === 'object' && value !== null) return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, filled(item, [...path, key])]))
    return value
  }
  const value = Value.Default(AgentConfig, filled(document.toJS() ?? {}, [])) as unknown
  for (const error of Value.Errors(AgentConfig, value)) {
    // each of them comes with an error of its own
    if (error.keyword === 'additionalProperties') continue
    if (secrets === withoutSecrets && isReference(error.instancePath, value)) continue
    const path = error.instancePath
      .split('/')
      .slice(1)
      .map((part) => (/^\d+$/.test(part) ? Number(part) : part))
    const missing = (error.params as { requiredProperties?: readonly string[] }).requiredProperties
    if (missing) for (const key of missing) found([...path, key], `is missing${explain(describedAt([...path, key]))}`)
    else {
      const at = path.reduce<unknown>((of, part) => (of as Record<string | number, unknown> | undefined)?.[part], value)
      const [key, known] = [String(path.at(-1)), Object.keys(describedAt(path.slice(0, -1)).properties ?? {})]
      if (known.length > 0 && !known.includes(key)) found(path, `is no setting; ${similar(key, known) ? `${similar(key, known)} is` : `there are ${known.join(', ')}`}`)
      else {
        const described = describedAt(path)
        const must = error.keyword === 'pattern' && described.says ? described.says : error.message
        found(path, `is ${isSecret(path) || typeof at === 'object' ? 'wrong' : JSON.stringify(at)}: it ${must}${explain(described)}`)
      }
    }
  }
  const settings = value as AgentSettings
  if (problems.size === 0) {
    const ids = settings.cameras.map(({ id }) => id)
    ids.forEach((id, at) => {
      if (ids.indexOf(id) < at) found(['cameras', at, 'id'], `is ${JSON.stringify(id)}, which another camera is called already`)
    })
    settings.cameras.forEach(({ address, clips, motion, framesPerSecond = usualRate }, at) => {
      // a reference that nobody has looked up yet may be any of them
      if (/^\$?\{/.test(address)) return
      if (!/^(rtsps?|onvif|https?|v4l2|file|folder|simulator):/.test(address) || (/^(rtsps?|onvif|https?):/.test(address) && !URL.canParse(address)))
        found(['cameras', at, 'address'], `is no address${explain(describedAt(['cameras', at, 'address']))}`)
      if (clips && (!/^(rtsps?|onvif):/.test(address) || /[?&]snapshot\b/.test(address)))
        found(['cameras', at, 'clips'], 'are cut from the stream of an RTSP or ONVIF camera, which this is not')
      if (clips && clips.longest <= clips.before) found(['cameras', at, 'clips', 'longest'], `is ${clips.longest}: it must be more than before, which is ${clips.before}`)
      if (motion?.burst && motion.burst.framesPerSecond <= framesPerSecond)
        found(['cameras', at, 'motion', 'burst', 'framesPerSecond'], `is ${motion.burst.framesPerSecond}: it must be more than framesPerSecond, which is ${framesPerSecond}`)
    })
    if (settings.kafka.mechanism && !(settings.kafka.username && settings.kafka.password))
      found(['kafka', 'username'], 'and kafka.password are missing: kafka.mechanism needs both')
    if (settings.kafka.username && !settings.kafka.mechanism) found(['kafka', 'mechanism'], `is missing: there is a user name${explain(describedAt(['kafka', 'mechanism']))}`)
  }
  if (problems.size > 0) settle()
  return settings
}

/** What can be wanted of an agent from elsewhere. How it reaches the cloud is not among it: a mistake there could not be taken back. */
export type WantedSettings = Pick<AgentSettings, 'cameras'> & Partial<Pick<AgentSettings, 'uploads'>>

/**
 * The `cameras: […]` and `uploads: {…}` of a text, with references to secrets as they are: only the agent knows what they
 * lead to. Throws `CONFIG_INVALID` with every problem.
 */
export function wantedOf(source: string, name: string): WantedSettings {
  const elsewhere = { agent: 'elsewhere', spool: { folder: '/' }, kafka: { brokers: ['-'] }, registry: { url: 'http://-' } }
  const { cameras, uploads, ...others } = (parseYaml(source) ?? {}) as WantedSettings
  const other = Object.keys(others)
  if (other.length > 0) throw new Fault('CONFIG_INVALID', `${name} holds ${other.join(', ')}: only cameras and uploads can be wanted from elsewhere`)
  const wanted = { cameras, ...(uploads ? { uploads } : {}) }
  const asText = JSON.stringify({ ...elsewhere, ...wanted })
  // checked with references as mere text, handed on as it was written
  parseAgentConfig(asText.replace(/\$\{/g, '{'), name)
  return wanted
}

/** Where an installed service has its configuration. */
export const usualConfig = '/etc/frameloop-agent/agent.yaml'

/** Throws `CONFIG_INVALID`, also when there is no file. */
export function readAgentConfig(path: string, secrets: Secrets = process.env): AgentSettings {
  let source: string
  try {
    source = readFileSync(path, 'utf8')
  } catch (thrown) {
    throw new Fault('CONFIG_INVALID', `There is no configuration ${path} that can be read; \`frameloop-agent init\` writes one`, {}, thrown)
  }
  return parseAgentConfig(source, path, secrets)
}

export interface FirstConfig {
  readonly agent?: string
  readonly site?: string
  readonly spool?: string
  readonly brokers: string
  readonly registry: string
  readonly s3Endpoint: string
  readonly cameras: readonly { readonly id: string; readonly address: string }[]
}

const quoted = (value: string): string => (/^[A-Za-z/][\w./:@-]*(?<!:)$/.test(value) && !/^(true|false|yes|no|on|off|null)$/i.test(value) ? value : JSON.stringify(value))

/** A file to begin with: what was asked for, and the rest as comments. */
export function writeFirstConfig(first: FirstConfig): string {
  const cameras = first.cameras.map(({ id, address }) => `  - id: ${quoted(id)}\n    address: ${quoted(address)}\n    framesPerSecond: 5`)
  return `# The frameloop agent of one machine. Check it with: frameloop-agent check
# \${NAME} is an environment variable, \${file:/path} the content of a file.
agent: ${quoted(first.agent ?? hostname().replace(/[^A-Za-z0-9._-]/g, '-'))}      # unique in the installation
site: ${quoted(first.site ?? 'site-1')}

spool:
  folder: ${quoted(first.spool ?? '/var/lib/frameloop-agent/spool')}
  capacity: 20 GB     # what waiting frames may take
  keepFree: 1 GB      # what stays free on the disk, whatever the capacity

kafka:
  brokers: [${first.brokers.split(',').map(quoted).join(', ')}]
  # tls: {}           # or { ca: /etc/frameloop-agent/ca.pem }
  # mechanism: scram-sha-512
  # username: agent-1
  # password: \${file:/etc/frameloop-agent/kafka.password}

registry:
  url: ${quoted(first.registry)}

s3:
  endpoint: ${quoted(first.s3Endpoint)}
  accessKeyId: \${S3_ACCESS_KEY_ID}
  secretAccessKey: \${S3_SECRET_ACCESS_KEY}

# uploads:
#   concurrency: 6
#   limit: 2 MB       # most bytes a second
#   windows: ['22:00-06:00']   # when frames go out
#   outside: live     # and at other times: live frames only, or nothing

cameras:
${cameras.length > 0 ? cameras.join('\n') : '  - id: door\n    address: rtsp://10.0.0.7/stream\n    framesPerSecond: 5'}
    # username: viewer
    # password: \${file:/etc/frameloop-agent/door.password}
    # transport: tcp
    # motion:         # keep pictures while something moves
    #   threshold: 0.004
    #   hold: 2
    #   heartbeat: 60
    #   ignore: [[0, 0, 1, 0.1]]
    #   burst: { framesPerSecond: 15, seconds: 2 }
    # clips:          # of every motion, or on command, with what came before
    #   before: 5
    #   after: 5
    # masks: [[0.8, 0.8, 0.2, 0.2]]
    # width: 1280
`
}
