/**
 * The simulated street: a pure function of (seed, time). Things of several shapes cross zones under moving light, and
 * what is true about every zone at every moment is known exactly. An honest stand-in for a camera; it never calls
 * itself one.
 */
export const sceneWidth = 640
export const sceneHeight = 360

export interface SceneZone {
  readonly zone: string
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

export const sceneZones: readonly SceneZone[] = [
  { zone: 'crossing', x: 60, y: 190, width: 150, height: 130 },
  { zone: 'parking-bay', x: 250, y: 200, width: 150, height: 120 },
  { zone: 'doorway', x: 450, y: 130, width: 120, height: 150 },
]

/** What the world does to the picture; none of it changes what is true. */
export type SceneChange = 'day' | 'night' | 'rain' | 'moved' | 'blurred' | 'new-kind'
export const sceneChanges: readonly SceneChange[] = ['day', 'night', 'rain', 'moved', 'blurred', 'new-kind']

type Kind = 'person' | 'car' | 'bicycle' | 'crate'

export interface Thing {
  readonly kind: Kind
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
  readonly colour: readonly [number, number, number]
}

/** A 32-bit hash (Murmur3's finaliser over the parts); the same parts give the same number everywhere. */
export function hash(...parts: readonly number[]): number {
  let h = 0x9747b28c
  for (const part of parts) {
    h = Math.imul(h ^ (part | 0), 0x85ebca6b)
    h ^= h >>> 13
    h = Math.imul(h, 0xc2b2ae35)
    h ^= h >>> 16
  }
  return h >>> 0
}

const unit = (...parts: readonly number[]): number => hash(...parts) / 0x1_0000_0000

interface Lane {
  readonly slotMs: number
  /** Top of the ground line things stand on. */
  readonly ground: number
  readonly kinds: readonly Kind[]
  readonly chance: number
  /** Pixels a second. */
  readonly speed: number
  readonly stopsAt?: number
}

/** Lane 0 crosses the crossing and the parking bay, lane 1 comes to the doorway and stops, lane 2 parks. */
const lanes: readonly Lane[] = [
  { slotMs: 9_000, ground: 305, kinds: ['person', 'bicycle', 'person'], chance: 0.75, speed: 95 },
  { slotMs: 11_000, ground: 268, kinds: ['person'], chance: 0.7, speed: 80, stopsAt: 490 },
  { slotMs: 16_000, ground: 312, kinds: ['car', 'crate', 'car'], chance: 0.65, speed: 110, stopsAt: 275 },
]

const sizes: Readonly<Record<Kind, readonly [number, number]>> = { person: [26, 78], car: [112, 62], bicycle: [62, 58], crate: [54, 46] }

/** The things in the picture at scene time `t` (ms). */
export function thingsAt(seed: number, t: number, change: SceneChange): Thing[] {
  const things: Thing[] = []
  lanes.forEach((lane, laneAt) => {
    const slot = Math.floor(t / lane.slotMs)
    for (const n of [slot - 1, slot]) {
      if (n < 0 || unit(seed, laneAt, n, 1) > lane.chance) continue
      const start = n * lane.slotMs + unit(seed, laneAt, n, 2) * lane.slotMs * 0.25
      const since = t - start
      if (since < 0) continue
      const kind = lane.kinds[hash(seed, laneAt, n, 3) % lane.kinds.length] ?? 'person'
      const scale = 0.85 + 0.35 * unit(seed, laneAt, n, 4)
      const [baseWidth, baseHeight] = change === 'new-kind' ? ([88, 34] as const) : sizes[kind]
      const width = baseWidth * scale
      const height = baseHeight * scale
      const speed = lane.speed * (0.8 + 0.5 * unit(seed, laneAt, n, 5))
      const leftToRight = lane.stopsAt !== undefined || hash(seed, laneAt, n, 6) % 2 === 0
      let travelled = (since / 1000) * speed
      if (lane.stopsAt !== undefined) {
        const toStop = lane.stopsAt + width
        const stay = lane.slotMs * (0.25 + 0.2 * unit(seed, laneAt, n, 7))
        const arrive = (toStop / speed) * 1000
        travelled = since < arrive ? travelled : since < arrive + stay ? toStop : toStop + ((since - arrive - stay) / 1000) * speed
      }
      const x = leftToRight ? -width + travelled : sceneWidth - travelled
      if (x > sceneWidth || x + width < 0) continue
      const colour = [40 + 190 * unit(seed, laneAt, n, 8), 40 + 170 * unit(seed, laneAt, n, 9), 40 + 190 * unit(seed, laneAt, n, 10)] as const
      things.push({ kind, x, y: lane.ground - height + 8 * unit(seed, laneAt, n, 11), width, height, colour })
    }
  })
  return things
}

/** The truth about a zone: occupied when 45 % of a thing or 12 % of the zone is covered, empty below a twentieth of that, else undecided. */
export function truthOf(zone: SceneZone, things: readonly Thing[]): 'occupied' | 'empty' | undefined {
  let most = 0
  for (const thing of things) {
    const wide = Math.min(zone.x + zone.width, thing.x + thing.width) - Math.max(zone.x, thing.x)
    const high = Math.min(zone.y + zone.height, thing.y + thing.height) - Math.max(zone.y, thing.y)
    if (wide <= 0 || high <= 0) continue
    const shared = wide * high
    most = Math.max(most, shared / (thing.width * thing.height) / 0.45, shared / (zone.width * zone.height) / 0.12)
  }
  return most >= 1 ? 'occupied' : most <= 0.05 ? 'empty' : undefined
}

/** Every zone's truth at scene time `t` (ms); undecided zones are left out. */
export function truthAt(seed: number, t: number, change: SceneChange = 'day'): { readonly zone: string; readonly label: 'occupied' | 'empty' }[] {
  const things = thingsAt(seed, t, change)
  return sceneZones.flatMap((zone) => {
    const label = truthOf(zone, things)
    return label ? [{ zone: zone.zone, label }] : []
  })
}

/** Paints the scene: Uint8Array [360, 640, 3], RGB. */
export function paintScene(seed: number, t: number, change: SceneChange): Uint8Array {
  const shift = change === 'moved' ? 34 : 0
  const light = (change === 'night' ? 0.32 : 1) * (1 + 0.1 * Math.sin(t / 23_000 + seed) + 0.03 * Math.sin(t / 1_700))
  const picture = new Float32Array(sceneWidth * sceneHeight * 3)
  const fill = (x0: number, y0: number, x1: number, y1: number, r: number, g: number, b: number, blend = 1): void => {
    const left = Math.max(0, Math.round(x0 + shift))
    const right = Math.min(sceneWidth, Math.round(x1 + shift))
    const bottom = Math.min(sceneHeight, Math.round(y1))
    for (let y = Math.max(0, Math.round(y0)); y < bottom; y += 1) {
      for (let at = (y * sceneWidth + left) * 3, end = (y * sceneWidth + right) * 3; at < end; at += 3) {
        picture[at] = (picture[at] ?? 0) * (1 - blend) + r * blend
        picture[at + 1] = (picture[at + 1] ?? 0) * (1 - blend) + g * blend
        picture[at + 2] = (picture[at + 2] ?? 0) * (1 - blend) + b * blend
      }
    }
  }
  fill(-60, 0, sceneWidth + 60, 130, 158, 182, 205)
  fill(-60, 120, sceneWidth + 60, 215, 148, 132, 118)
  for (let window = 0; window < 9; window += 1) fill(20 + window * 72, 140, 52 + window * 72, 178, 92 + 18 * unit(seed, window), 108, 128)
  fill(462, 140, 556, 268, 74, 58, 48)
  fill(-60, 215, sceneWidth + 60, 268, 136, 134, 130)
  fill(-60, 268, sceneWidth + 60, sceneHeight, 88, 88, 92)
  for (let stripe = 0; stripe < 5; stripe += 1) fill(66 + stripe * 29, 268, 82 + stripe * 29, 330, 205, 205, 200)
  fill(250, 318, 400, 321, 215, 210, 190)
  fill(250, 270, 253, 318, 215, 210, 190)
  fill(397, 270, 400, 318, 215, 210, 190)
  // a cloud's shadow wanders over the street
  const cloud = ((t / 45) % (sceneWidth * 2)) - sceneWidth / 2
  fill(cloud, 215, cloud + 260, sceneHeight, 40, 42, 50, 0.22)
  for (const thing of thingsAt(seed, t, change)) {
    const { x, y, width, height } = thing
    const [r, g, b] = thing.colour
    fill(x - 6, y + height - 4, x + width + 10, y + height + 5, 30, 30, 34, 0.55)
    if (change === 'new-kind') {
      fill(x, y, x + width, y + height, g, b, r)
      fill(x + width * 0.15, y - 8, x + width * 0.25, y, 230, 60, 40)
      continue
    }
    switch (thing.kind) {
      case 'person':
        fill(x + width * 0.3, y, x + width * 0.7, y + height * 0.2, 205, 165, 140)
        fill(x + width * 0.1, y + height * 0.2, x + width * 0.9, y + height * 0.62, r, g, b)
        fill(x + width * (0.2 + 0.1 * Math.sin(t / 140)), y + height * 0.62, x + width * (0.42 + 0.1 * Math.sin(t / 140)), y + height, b * 0.5, g * 0.5, r * 0.5)
        fill(x + width * (0.58 - 0.1 * Math.sin(t / 140)), y + height * 0.62, x + width * (0.8 - 0.1 * Math.sin(t / 140)), y + height, b * 0.5, g * 0.5, r * 0.5)
        break
      case 'car':
        fill(x, y + height * 0.4, x + width, y + height * 0.88, r, g, b)
        fill(x + width * 0.2, y, x + width * 0.78, y + height * 0.42, r * 0.8, g * 0.8, b * 0.8)
        fill(x + width * 0.25, y + height * 0.08, x + width * 0.73, y + height * 0.38, 70, 85, 100)
        fill(x + width * 0.12, y + height * 0.78, x + width * 0.3, y + height, 25, 25, 28)
        fill(x + width * 0.7, y + height * 0.78, x + width * 0.88, y + height, 25, 25, 28)
        break
      case 'bicycle':
        fill(x, y + height * 0.6, x + width * 0.35, y + height, 35, 35, 38)
        fill(x + width * 0.65, y + height * 0.6, x + width, y + height, 35, 35, 38)
        fill(x + width * 0.3, y, x + width * 0.7, y + height * 0.65, r, g, b)
        break
      case 'crate':
        fill(x, y, x + width, y + height, 150, 112, 70)
        fill(x, y + height * 0.45, x + width, y + height * 0.55, 110, 80, 48)
        break
      default:
        thing.kind satisfies never
    }
  }
  if (change === 'rain')
    for (let drop = 0; drop < 260; drop += 1)
      fill(
        unit(seed, drop, t, 20) * sceneWidth,
        unit(seed, drop, t, 21) * sceneHeight,
        unit(seed, drop, t, 20) * sceneWidth + 2,
        unit(seed, drop, t, 21) * sceneHeight + 18,
        190,
        195,
        205,
        0.5,
      )
  const source = change === 'blurred' ? blur(picture, 5) : picture
  const out = new Uint8Array(picture.length)
  let noise = hash(seed, t, 99) || 1
  const strength = change === 'night' ? 20 : 9
  for (let at = 0; at < out.length; at += 3) {
    // xorshift32 (Marsaglia 2003), one draw a pixel
    noise ^= noise << 13
    noise ^= noise >>> 17
    noise ^= noise << 5
    const grain = ((noise & 0xff) / 255 - 0.5) * strength
    for (let channel = 0; channel < 3; channel += 1) out[at + channel] = Math.max(0, Math.min(255, (source[at + channel] ?? 0) * light + grain))
  }
  return out
}

/** A horizontal and vertical running mean of radius `radius`. */
function blur(picture: Float32Array, radius: number): Float32Array {
  const pass = (input: Float32Array, step: number, lineStep: number, lines: number, length: number): Float32Array => {
    const output = new Float32Array(input.length)
    for (let line = 0; line < lines; line += 1) {
      for (let channel = 0; channel < 3; channel += 1) {
        const base = line * lineStep + channel
        for (let at = 0; at < length; at += 1) {
          let sum = 0
          const from = Math.max(0, at - radius)
          const to = Math.min(length - 1, at + radius)
          for (let k = from; k <= to; k += 1) sum += input[base + k * step] ?? 0
          output[base + at * step] = sum / (to - from + 1)
        }
      }
    }
    return output
  }
  return pass(pass(picture, 3, sceneWidth * 3, sceneHeight, sceneWidth), sceneWidth * 3, 3, sceneWidth, sceneHeight)
}
