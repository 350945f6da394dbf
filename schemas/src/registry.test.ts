import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { openRegistry } from './registry.ts'

let server: Server | undefined
afterEach(() => {
  server?.closeAllConnections()
  server?.close()
})

test.each([
  ['that it has no such schema', 404, JSON.stringify({ error_code: 40403, message: 'Schema 7 not found.' }), 'SCHEMA_UNKNOWN'],
  ['a page of something on the way', 404, '<html>not here</html>', 'REGISTRY_UNAVAILABLE'],
  ['another page, with success', 200, '<html>log in</html>', 'REGISTRY_UNAVAILABLE'],
  ['that a login is missing', 401, JSON.stringify({ error_code: 401 }), 'REGISTRY_UNAVAILABLE'],
  ['that it is asked too much', 429, '', 'REGISTRY_UNAVAILABLE'],
])('a registry that answers %s', async (_, status, body, code) => {
  server = createServer((__, response) => response.writeHead(status, { 'content-type': 'application/json' }).end(body))
  await new Promise<void>((resolve) => server?.listen(0, '127.0.0.1', resolve))
  const registry = openRegistry(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)
  await expect(registry.schemaOf(7)).rejects.toMatchObject({ code })
})
