import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { CloudSettings, IngestSettings, ServeSettings } from '@frameloop/cloud/config'
import { parseAgentConfig } from '@frameloop/edge-agent/config'
import { readConfig } from '@frameloop/kit/config'
import { ChainSettings } from '@frameloop/stream-processors/config'
import { expect, test } from 'vitest'
import { parse } from 'yaml'
import { root } from './home.ts'
import { processNames } from './up.ts'

interface Service {
  readonly image?: string
  readonly environment?: Readonly<Record<string, string | number>>
  readonly depends_on?: Readonly<Record<string, unknown>>
  readonly healthcheck?: object
}

const text = readFileSync(join(root, 'docker-compose.yml'), 'utf8').replace(/\$\{([A-Z0-9_]+):\?[^}]*\}/g, (_, name: string) => `value-of-${name}`)
const { services } = parse(text, { merge: true }) as { services: Readonly<Record<string, Service>> }

test('every process that `up` starts is a service of its own', () => {
  expect(Object.keys(services)).toEqual(expect.arrayContaining([...processNames, 'postgres', 'kafka', 'registry', 's3', 'mlflow', 'provision']))
})

test.each(processNames)('%s accepts the settings it is given in containers, and waits for what it needs', (name) => {
  const service = services[name]
  const environment = service?.environment as NodeJS.ProcessEnv
  const own = { serve: ServeSettings, ingest: IngestSettings } as const
  const schema = ['validate', 'extract', 'features', 'catalog', 'archive'].includes(name) ? ChainSettings : (own[name as keyof typeof own] ?? CloudSettings)
  if (name === 'agent') expect(parseAgentConfig(readFileSync(join(root, 'deploy/docker/agent.yaml'), 'utf8'), 'agent.yaml', environment).s3.accessKeyId).toBe('frameloop-edge')
  else expect(() => readConfig(schema, environment)).not.toThrow()
  expect(service?.depends_on).toHaveProperty('provision')
})

test('the image is given the package.json of every workspace: npm installs nothing without one of them', () => {
  const { workspaces } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { workspaces: string[] }
  const image = readFileSync(join(root, 'deploy/docker/frameloop.Dockerfile'), 'utf8')
  for (const workspace of workspaces) expect(image).toContain(`COPY ${workspace}/package.json ${workspace}/\n`)
})

test('images of backing services are pinned to the versions that `npm start` runs', () => {
  expect([services['kafka']?.image, services['registry']?.image, services['s3']?.image]).toEqual([
    'apache/kafka:4.4.0',
    'apicurio/apicurio-registry:3.3.2',
    'chrislusf/seaweedfs:4.48',
  ])
})
