/** An ONVIF camera: it is asked where its pictures are, which then come over RTSP, or one by one over HTTP. */
import { networkInterfaces } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { toError } from '@frameloop/kit/fault'
import type { Ms } from '@frameloop/kit/units'
import onvif from 'onvif/promises/index.js'
import type { CameraSettings } from '../config.ts'
import { httpSource } from './http.ts'
import { rtspSource } from './rtsp.ts'
import { loginOf, patienceOf, refusalOf, type Source, SourceFailure } from './source.ts'

const answerLimit: Ms = 8_000

interface Profile {
  readonly name: string
  readonly $: { readonly token: string }
  readonly videoEncoderConfiguration?: { readonly encoding?: string; readonly resolution?: { readonly width: number; readonly height: number } }
}

/** What is used of the client: its own types know only calls with callbacks. */
interface Client {
  readonly profiles?: readonly Profile[]
  connect(): Promise<unknown>
  getProfiles(): Promise<unknown>
  getStreamUri(of: { readonly protocol: 'RTSP'; readonly profileToken: string }): Promise<{ readonly uri: string }>
  getSnapshotUri(of: { readonly profileToken: string }): Promise<{ readonly uri: string }>
}

function shownProfile({ name, videoEncoderConfiguration: { encoding, resolution } = {} }: Profile): string {
  return `${name}${resolution ? ` (${encoding ?? 'video'} ${resolution.width}x${resolution.height})` : ''}`
}

/** What the camera's answer, or its silence, means. */
function failureOf(thrown: unknown): SourceFailure {
  const said = toError(thrown).message
  if (/NotAuthorized|not authorized|authority failure|authentication failed|\b401\b/i.test(said)) return refusalOf(401, 'stream') ?? new SourceFailure('refused', said)
  if (/ECONNREFUSED|EHOSTUNREACH|ENETUNREACH|ENOTFOUND|timeout/i.test(said)) return new SourceFailure('backing off', `no ONVIF camera answers at the address: ${said}`, thrown)
  return new SourceFailure('wrong', `the camera does not answer as ONVIF cameras do: ${said}`, thrown)
}

export interface OnvifPlace {
  readonly stream: string
  /** Undefined where the camera gives no single pictures. */
  readonly snapshot: string | undefined
  readonly profiles: readonly string[]
}

/** What never comes, whatever the reason, has failed. */
async function withinLimit<Result>(asked: Promise<Result>): Promise<Result> {
  const late = new AbortController()
  const tooLate = sleep(4 * answerLimit, undefined, { signal: late.signal }).then(() => {
    throw new SourceFailure('backing off', 'the camera does not get to the end of its answers')
  })
  try {
    return await Promise.race([asked, tooLate])
  } finally {
    late.abort()
    tooLate.catch(() => {})
  }
}

/** `onvif://[USER:PASSWORD@]HOST[:PORT][/PATH][?profile=NAME]` → where its pictures are. Throws `SourceFailure`. */
export async function askOnvif(settings: CameraSettings): Promise<OnvifPlace> {
  const { hostname, port, pathname, searchParams } = new URL(settings.address)
  const camera = new onvif.Cam({
    hostname,
    ...(port ? { port: Number(port) } : {}),
    ...(pathname.length > 1 ? { path: pathname } : {}),
    ...loginOf(settings),
    timeout: answerLimit,
    autoconnect: false,
    // behind a forwarded port a camera names addresses that only its own network knows
    preserveAddress: true,
  }) as unknown as Client
  try {
    // which source is the one it may guess wrong about, and then it never says that it is connected; profiles are chosen below
    Reflect.set(camera, 'getActiveSources', () => {})
    await withinLimit(camera.connect())
    // it connects all the same when its profiles are refused, and says why when asked again
    if ((camera.profiles ?? []).length === 0) await camera.getProfiles()
    const { profiles = [] } = camera
    const wanted = searchParams.get('profile')
    const profile = wanted === null ? profiles[0] : profiles.find(({ name, $: { token } }) => name === wanted || token === wanted)
    if (!profile)
      throw new SourceFailure('wrong', wanted === null ? 'the camera has no video profile' : `the camera has no profile ${wanted}; it has ${profiles.map(shownProfile).join(', ')}`)
    const profileToken = profile.$.token
    const { uri: stream } = await camera.getStreamUri({ protocol: 'RTSP', profileToken })
    const snapshot = await camera.getSnapshotUri({ profileToken }).catch(() => undefined)
    return { stream, snapshot: snapshot?.uri, profiles: profiles.map(shownProfile) }
  } catch (thrown) {
    throw thrown instanceof SourceFailure ? thrown : failureOf(thrown)
  }
}

export function onvifSource(settings: CameraSettings): Source {
  const isSnapshot = new URL(settings.address).searchParams.has('snapshot')
  return {
    kind: 'onvif',
    patience: patienceOf(settings, 15_000 + answerLimit),
    finishes: !isSnapshot,
    async *pictures(context, signal) {
      const { stream, snapshot } = await askOnvif(settings)
      if (signal.aborted) return
      const found = { ...settings, ...loginOf(settings) }
      if (!isSnapshot) yield* rtspSource({ ...found, address: stream }).pictures(context, signal)
      else if (snapshot) yield* httpSource({ ...found, address: snapshot }).pictures(context, signal)
      else throw new SourceFailure('wrong', 'the camera gives no single pictures; leave ?snapshot out')
    },
  }
}

export interface FoundCamera {
  readonly name: string
  readonly model: string
  /** As it is written into the configuration. */
  readonly address: string
}

interface ProbeMatch {
  readonly XAddrs?: string
  readonly scopes?: string | { readonly _?: string }
}

/** Cameras that answer to WS-Discovery on any network of this machine, within `wait`. */
export async function findCameras(wait: Ms): Promise<FoundCamera[]> {
  const devices = Object.entries(networkInterfaces()).flatMap(([device, addresses]) => (addresses?.some(({ family }) => family === 'IPv4') ? [device] : []))
  // what is no answer at all is of no interest
  const ignore = (): void => {}
  onvif.Discovery.on('error', ignore)
  const answers = await Promise.all(devices.map((device) => onvif.Discovery.probe({ device, timeout: wait, resolve: false }).catch(() => [])))
  onvif.Discovery.removeListener('error', ignore)
  const found = new Map<string, FoundCamera>()
  for (const answer of answers.flat()) {
    const match = (answer as { readonly probeMatches?: { readonly probeMatch?: ProbeMatch } }).probeMatches?.probeMatch
    const [first] = (match?.XAddrs ?? '').split(' ')
    if (!first || !URL.canParse(first)) continue
    const { hostname, port, pathname } = new URL(first)
    const scopes = typeof match?.scopes === 'string' ? match.scopes : (match?.scopes?._ ?? '')
    const scope = (kind: string): string => decodeURIComponent(new RegExp(`onvif://www\\.onvif\\.org/${kind}/(\\S+)`).exec(scopes)?.[1] ?? '')
    const address = `onvif://${hostname}${port ? `:${port}` : ''}${pathname === '/onvif/device_service' ? '' : pathname}`
    found.set(address, { name: scope('name'), model: scope('hardware'), address })
  }
  return [...found.values()]
}
