/** Against a stand-in camera that answers as the ONVIF specifications say; not against a camera one can buy. */
import { createHash } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { openLog } from '@frameloop/kit/log'
import sharp from 'sharp'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { CameraSettings } from '../config.ts'
import { askOnvif, findCameras, onvifSource } from './onvif.ts'
import { SourceFailure } from './source.ts'

const login = { username: 'viewer', password: 'opensesame' }
let port = 0
let asked: string[] = []
let namesEncoders = true

/** OASIS Web Services Security UsernameToken Profile 1.0: base64(sha1(nonce + created + password)). */
function isLoggedIn(body: string): boolean {
  const part = (name: string): string => new RegExp(`<(?:\\w+:)?${name}(?: [^>]*)?>([^<]*)<`).exec(body)?.[1] ?? ''
  const digest = createHash('sha1')
    .update(Buffer.concat([Buffer.from(part('Nonce'), 'base64'), Buffer.from(part('Created') + login.password)]))
    .digest('base64')
  return part('Username') === login.username && part('Password') === digest
}

const envelope = (body: string): string =>
  `<?xml version="1.0"?><s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:tds="http://www.onvif.org/ver10/device/wsdl" xmlns:trt="http://www.onvif.org/ver10/media/wsdl" xmlns:tt="http://www.onvif.org/ver10/schema"><s:Body>${body}</s:Body></s:Envelope>`
const refused = envelope(
  '<s:Fault><s:Code><s:Value>s:Sender</s:Value><s:Subcode><s:Value>ter:NotAuthorized</s:Value></s:Subcode></s:Code><s:Reason><s:Text xml:lang="en">Sender not Authorized</s:Text></s:Reason></s:Fault>',
)
const profile = (token: string, name: string, encoding: string, width: number, height: number): string =>
  `<trt:Profiles token="${token}" fixed="true"><tt:Name>${name}</tt:Name><tt:VideoSourceConfiguration token="vs"><tt:SourceToken>source</tt:SourceToken></tt:VideoSourceConfiguration>${namesEncoders ? `<tt:VideoEncoderConfiguration token="ve-${token}"><tt:Encoding>${encoding}</tt:Encoding><tt:Resolution><tt:Width>${width}</tt:Width><tt:Height>${height}</tt:Height></tt:Resolution></tt:VideoEncoderConfiguration>` : ''}</trt:Profiles>`

/** What the camera answers; it says its own address as its network knows it, which is not ours. */
function answer(body: string): string {
  const inside = 'http://192.168.44.44'
  if (body.includes('GetSystemDateAndTime')) {
    const now = new Date()
    const date = `<tt:Date><tt:Year>${now.getUTCFullYear()}</tt:Year><tt:Month>${now.getUTCMonth() + 1}</tt:Month><tt:Day>${now.getUTCDate()}</tt:Day></tt:Date>`
    const time = `<tt:Time><tt:Hour>${now.getUTCHours()}</tt:Hour><tt:Minute>${now.getUTCMinutes()}</tt:Minute><tt:Second>${now.getUTCSeconds()}</tt:Second></tt:Time>`
    return envelope(
      `<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:UTCDateTime>${time}${date}</tt:UTCDateTime></tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>`,
    )
  }
  if (!isLoggedIn(body)) return refused
  if (body.includes('GetServices')) {
    const service = (namespace: string, path: string): string =>
      `<tds:Service><tds:Namespace>${namespace}</tds:Namespace><tds:XAddr>${inside}${path}</tds:XAddr><tds:Version><tt:Major>2</tt:Major><tt:Minor>5</tt:Minor></tds:Version></tds:Service>`
    const services = [service('http://www.onvif.org/ver10/device/wsdl', '/onvif/device_service'), service('http://www.onvif.org/ver10/media/wsdl', '/onvif/media')]
    return envelope(`<tds:GetServicesResponse>${services.join('')}</tds:GetServicesResponse>`)
  }
  if (body.includes('GetProfiles'))
    return envelope(`<trt:GetProfilesResponse>${profile('p0', 'main', 'H264', 1920, 1080)}${profile('p1', 'small', 'H264', 640, 360)}</trt:GetProfilesResponse>`)
  if (body.includes('GetVideoSources'))
    return envelope('<trt:GetVideoSourcesResponse><trt:VideoSources token="source"><tt:Framerate>25</tt:Framerate></trt:VideoSources></trt:GetVideoSourcesResponse>')
  const token = /ProfileToken>(\w+)</.exec(body)?.[1]
  const uri = (path: string): string => `<trt:MediaUri><tt:Uri>${path}</tt:Uri></trt:MediaUri>`
  if (body.includes('GetStreamUri')) return envelope(`<trt:GetStreamUriResponse>${uri(`rtsp://127.0.0.1:8554/${token}?channel=1&amp;sub=0`)}</trt:GetStreamUriResponse>`)
  return envelope(`<trt:GetSnapshotUriResponse>${uri(`http://127.0.0.1:${port}/${token}.jpg`)}</trt:GetSnapshotUriResponse>`)
}

const picture = await sharp({ create: { width: 64, height: 48, channels: 3, background: '#406080' } })
  .jpeg()
  .toBuffer()
const camera = createServer((request, response) => {
  let body = ''
  request.on('data', (chunk: Buffer) => {
    body += chunk.toString('utf8')
  })
  request.on('end', () => {
    asked.push(request.url ?? '')
    if (request.method === 'GET') {
      const isKnown = request.headers.authorization === `Basic ${Buffer.from(`${login.username}:${login.password}`).toString('base64')}`
      if (isKnown) response.writeHead(200, { 'content-type': 'image/jpeg' }).end(picture)
      else response.writeHead(401, { 'www-authenticate': 'Basic realm="camera"' }).end()
      return
    }
    const said = answer(body)
    response.writeHead(said === refused ? 400 : 200, { 'content-type': 'application/soap+xml' }).end(said)
  })
})
const discovery = createSocket({ type: 'udp4', reuseAddr: true })

beforeAll(async () => {
  camera.listen(0, '127.0.0.1')
  await once(camera, 'listening')
  port = (camera.address() as { port: number }).port
  discovery.bind(3702)
  await once(discovery, 'listening')
  discovery.addMembership('239.255.255.250', '127.0.0.1')
  discovery.on('message', (probe, { port: replyTo, address }) => {
    const id = /MessageID[^>]*>([^<]+)</.exec(probe.toString('utf8'))?.[1] ?? ''
    const match = `<d:ProbeMatch><a:EndpointReference><a:Address>urn:uuid:door-1</a:Address></a:EndpointReference><d:Types>dn:NetworkVideoTransmitter</d:Types><d:Scopes>onvif://www.onvif.org/name/Front%20Door onvif://www.onvif.org/hardware/X-100</d:Scopes><d:XAddrs>http://127.0.0.1:${port}/onvif/device_service</d:XAddrs></d:ProbeMatch>`
    discovery.send(
      `<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing" xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><s:Header><a:RelatesTo>${id}</a:RelatesTo></s:Header><s:Body><d:ProbeMatches>${match}</d:ProbeMatches></s:Body></s:Envelope>`,
      replyTo,
      address,
    )
  })
})
afterAll(() => {
  camera.close()
  discovery.close()
})

const settings = (query = '', more: Partial<CameraSettings> = {}): CameraSettings => ({ id: 'door', address: `onvif://127.0.0.1:${port}${query}`, ...login, ...more })

test('the stream and the single picture of the first profile, or of the one that is named', async () => {
  expect(await askOnvif(settings())).toEqual({
    stream: 'rtsp://127.0.0.1:8554/p0?channel=1&sub=0',
    snapshot: `http://127.0.0.1:${port}/p0.jpg`,
    profiles: ['main (H264 1920x1080)', 'small (H264 640x360)'],
  })
  expect((await askOnvif(settings('?profile=small'))).stream).toContain('/p1?')
  await expect(askOnvif(settings('?profile=huge'))).rejects.toThrow('the camera has no profile huge; it has main (H264 1920x1080), small (H264 640x360)')
})

test('a camera that does not say how its profiles are encoded is asked for their streams all the same', async () => {
  namesEncoders = false
  try {
    expect(await askOnvif(settings())).toMatchObject({ stream: expect.stringContaining('rtsp://') as unknown, profiles: ['main', 'small'] })
  } finally {
    namesEncoders = true
  }
})

test('a wrong password is refused and not hammered, silence is away, and something else is said to be wrong', async () => {
  await expect(askOnvif(settings('', { password: 'wrong' }))).rejects.toMatchObject({ state: 'refused', message: 'the camera refuses the user name or password (401)' })
  await expect(askOnvif({ ...settings(), address: 'onvif://127.0.0.1:9' })).rejects.toMatchObject({ state: 'backing off' })
  const other = createServer((_, response) => response.end('<html>a printer</html>')).listen(0, '127.0.0.1')
  await once(other, 'listening')
  const thrown = await askOnvif({ ...settings(), address: `onvif://127.0.0.1:${(other.address() as { port: number }).port}` }).catch((error: unknown) => error)
  other.close()
  expect(thrown).toBeInstanceOf(SourceFailure)
  expect(thrown).toMatchObject({ state: 'wrong' })
})

test('its single pictures come with the same login', async () => {
  asked = []
  const source = onvifSource(settings('?snapshot&profile=small', { framesPerSecond: 20 }))
  const context = { log: openLog('test', 'silent'), ffmpeg: 'ffmpeg', ffprobe: 'ffprobe', wantsGray: false, say: () => {} }
  const stop = new AbortController()
  const pictures = []
  for await (const one of source.pictures(context, stop.signal)) {
    pictures.push(one)
    if (pictures.length === 3) break
  }
  expect(pictures.map(({ width, height }) => [width, height])).toEqual([
    [64, 48],
    [64, 48],
    [64, 48],
  ])
  expect(asked).toContain('/p1.jpg')
})

test('a camera in the network is found, with its name and the address to write down', async () => {
  expect(await findCameras(1_000)).toContainEqual({ name: 'Front Door', model: 'X-100', address: `onvif://127.0.0.1:${port}` })
})
