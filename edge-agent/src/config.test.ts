import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { bytesOf, parseAgentConfig, wantedOf, withoutSecrets, writeFirstConfig } from './config.ts'
import { environmentLine, filesIn, namesIn } from './install-service.ts'

const whole = `agent: agent-1
spool: { folder: /tmp/spool }
kafka: { brokers: [127.0.0.1:9092] }
registry: { url: http://127.0.0.1:8081 }
s3: { endpoint: http://127.0.0.1:8333, accessKeyId: "\${KEY}", secretAccessKey: secret }
cameras:
  - id: door
    address: rtsp://10.0.0.7/stream
`

const problemsOf = (text: string, env: NodeJS.ProcessEnv = { KEY: 'k' }): string => {
  try {
    parseAgentConfig(text, 'agent.yaml', env)
    return ''
  } catch (thrown) {
    return (thrown as Error).message
  }
}

test('what is not said has a sensible default, and secrets come from the environment and from files', () => {
  const folder = mkdtempSync(join(tmpdir(), 'frameloop-config-'))
  writeFileSync(join(folder, 'password'), 'opensesame\n')
  const config = parseAgentConfig(`${whole}    password: \${file:${join(folder, 'password')}}\n    username: viewer\n`, 'agent.yaml', { KEY: 'k-1' })
  rmSync(folder, { recursive: true })
  expect(config).toMatchObject({ site: 'site-1', port: 9180, s3: { accessKeyId: 'k-1' }, uploads: { concurrency: 6 }, cameras: [{ password: 'opensesame' }] })
  expect(bytesOf(config.spool.capacity)).toBe(2_000_000_000)
})

test('who needs no secret reads the file without them', () => {
  const text = whole.replace('http://127.0.0.1:8081', '"${NOWHERE}"').replace('secret }', '"${file:/nowhere/at/all}" }')
  expect(problemsOf(text, {})).toMatch(/NOWHERE, which is not set/)
  expect(parseAgentConfig(text, 'agent.yaml', withoutSecrets)).toMatchObject({ port: 9180, spool: { folder: '/tmp/spool' } })
  // what is wrong in it is still told
  expect(() => parseAgentConfig(text.replace('agent: agent-1', 'agent: "a b"'), 'agent.yaml', withoutSecrets)).toThrow(/agent is "a b"/)
})

test('an address that is none is told with its line', () => {
  expect(problemsOf(whole.replace('rtsp://10.0.0.7/stream', 'http://[door/'))).toMatch(/line 8: cameras\[0\]\.address is no address/)
})

test('a service finds what its configuration takes from the environment in a file of its own', () => {
  expect(namesIn('# ${NAME} is one\na: ${B}\nc: ["${file:/d}"] # ${D}\ne: "${A} ${B}"')).toEqual(['A', 'B'])
  expect(environmentLine('KEY', 'a"b\\c')).toBe('KEY="a\\"b\\\\c"\n')
})

test('the files that a service must be able to read are those that its configuration names', () => {
  const text = `${whole}    password: \${file:/etc/door}\n`
  expect(filesIn(text, { kafka: { brokers: [], tls: { ca: '/etc/ca.pem' } } })).toEqual(['/etc/ca.pem', '/etc/door'])
})

test('all problems come at once, each with its line, what was found and an example', () => {
  const said = problemsOf(
    whole
      .replace('agent: agent-1', 'agent: "a b"')
      .replace('{ brokers: [127.0.0.1:9092] }', '{ broker: [x] }')
      .replace('folder: /tmp/spool', 'folder: /tmp/spool, capacity: lots')
      .replace('id: door', 'id: door\n    framesPerSecond: 0\n    motion: { treshold: 1 }'),
  )
  expect(said).toMatch(/^agent\.yaml has 6 problems:/)
  for (const line of [
    'line 1: agent is "a b"',
    'line 2: spool.capacity is "lots": it must be a number and a unit from B to TB (what waiting frames may take), for example 20 GB',
    'kafka.brokers is missing (host:port of the brokers), for example [kafka.example.com:9093]',
    'kafka.broker is no setting; brokers is',
    'line 8: cameras[0].framesPerSecond is 0',
    'cameras[0].motion.treshold is no setting; there are threshold, hold',
  ])
    expect(said).toContain(line)
})

test('a password that is wrong is not shown, nor one in an address', () => {
  expect(problemsOf(`${whole}    password: 12345\n`)).toMatch(/line \d+: cameras\[0\]\.password is wrong/)
  expect(problemsOf(`${whole}    password: 12345\n`)).not.toContain('12345')
  expect(problemsOf(whole.replace('id: door', 'id: rtsp://a:secret@host'))).not.toContain('secret@')
  const mapping = problemsOf(whole.replace('  - id: door', '  door:\n    id: door\n    password: hunter2'))
  expect(mapping).toMatch(/cameras is wrong: it/)
  expect(mapping).not.toContain('hunter2')
})

test('an address that no source understands is told with its line, before anything starts', () => {
  expect(problemsOf(whole.replace('rtsp://', 'rstp://'))).toMatch(/line \d+: cameras\[0\]\.address is no address \(rtsp:/)
})

test('a missing variable, a missing file, two cameras of one name and text that is no YAML are told', () => {
  expect(problemsOf(whole, {})).toContain('s3.accessKeyId names the environment variable KEY, which is not set')
  expect(problemsOf(`${whole}    password: \${file:/nowhere}\n`)).toContain('cameras[0].password names a file that cannot be read')
  expect(problemsOf(`${whole}  - id: door\n    address: 'simulator:'\n`)).toContain('cameras[1].id is "door", which another camera is called already')
  expect(problemsOf('agent: [')).toMatch(/^agent\.yaml has a problem:\n {2}line 1: /)
  expect(problemsOf('')).toContain('agent is missing')
})

test('what init writes can be read again, whatever the address', () => {
  const simulated = writeFirstConfig({ brokers: 'a:1', registry: 'http://r', s3Endpoint: 'http://s', cameras: [{ id: 'street', address: 'simulator:' }] })
  expect(parseAgentConfig(simulated, 'agent.yaml', { S3_ACCESS_KEY_ID: 'a', S3_SECRET_ACCESS_KEY: 'b' }).cameras).toMatchObject([{ address: 'simulator:' }])
  const text = writeFirstConfig({ brokers: 'a:1,b:2', registry: 'http://r', s3Endpoint: 'http://s', cameras: [{ id: 'door', address: 'rtsp://10.0.0.7/a?b=c#d' }] })
  const config = parseAgentConfig(text, 'agent.yaml', { S3_ACCESS_KEY_ID: 'a', S3_SECRET_ACCESS_KEY: 'b' })
  expect(config).toMatchObject({ kafka: { brokers: ['a:1', 'b:2'] }, cameras: [{ id: 'door', address: 'rtsp://10.0.0.7/a?b=c#d', framesPerSecond: 5 }] })
})

test('from elsewhere cameras and uploads can be wanted, references to secrets go along as they are, and nothing else is taken', () => {
  const cameras = "cameras: [{ id: door, address: 'rtsp://10.0.0.7/x', username: v, password: '${file:/etc/door}' }]\n"
  expect(wantedOf(`${cameras}uploads: { limit: 2 MB }`, 'wish.yaml')).toEqual({
    cameras: [{ id: 'door', address: 'rtsp://10.0.0.7/x', username: 'v', password: '${file:/etc/door}' }],
    uploads: { limit: '2 MB' },
  })
  expect(() => wantedOf(`${cameras}uploads: { limit: much }`, 'wish.yaml')).toThrow(/uploads.limit is "much"/)
  expect(() => wantedOf(`${cameras}kafka: { brokers: [x] }`, 'wish.yaml')).toThrow('wish.yaml holds kafka: only cameras and uploads can be wanted from elsewhere')
})
