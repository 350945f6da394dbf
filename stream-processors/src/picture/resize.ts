/**
 * Crop and resize by separable kernels. Ours, so that it is the same everywhere.
 * area: every source pixel counts by the area it covers, what OpenCV calls INTER_AREA (linear where it enlarges).
 * linear, cubic (Catmull-Rom, a = -0.5), lanczos (3 lobes): widened where they shrink, as Pillow does, so nothing is skipped.
 */

export type Kernel = 'area' | 'linear' | 'cubic' | 'lanczos'

export interface Rectangle {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

interface Axis {
  readonly start: Int32Array
  readonly count: Int32Array
  readonly first: Int32Array
  readonly weights: Float32Array
}

const axes = new Map<string, Axis>()

const sinc = (x: number): number => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x))

/** Half width in source pixels, and weight at a distance. */
const kernels: Readonly<Record<Exclude<Kernel, 'area'>, { readonly support: number; readonly weight: (x: number) => number }>> = {
  linear: { support: 1, weight: (x) => 1 - x },
  cubic: { support: 2, weight: (x) => (x < 1 ? 1.5 * x ** 3 - 2.5 * x ** 2 + 1 : -0.5 * x ** 3 + 2.5 * x ** 2 - 4 * x + 2) },
  lanczos: { support: 3, weight: (x) => sinc(x) * sinc(x / 3) },
}

/** For each target pixel the source pixels it averages and their weights, which add up to 1. */
function axisOf(source: number, target: number, kernel: Kernel): Axis {
  const key = `${source} ${target} ${kernel}`
  const known = axes.get(key)
  if (known) return known
  const axis = kernel === 'area' ? areaAxis(source, target) : kernelAxis(source, target, kernels[kernel])
  // sizes are few (zones of cameras); a flood of odd ones must not fill the memory
  if (axes.size > 256) axes.clear()
  axes.set(key, axis)
  return axis
}

function kernelAxis(source: number, target: number, { support, weight }: (typeof kernels)['linear']): Axis {
  const step = source / target
  const widen = Math.max(1, step)
  const start = new Int32Array(target)
  const count = new Int32Array(target)
  const first = new Int32Array(target)
  const weights: number[] = []
  for (let i = 0; i < target; i += 1) {
    const centre = (i + 0.5) * step
    const left = Math.max(0, Math.ceil(centre - support * widen - 0.5))
    const right = Math.min(source, Math.floor(centre + support * widen - 0.5) + 1)
    const own = Array.from({ length: right - left }, (_, at) => {
      const distance = Math.abs(left + at + 0.5 - centre) / widen
      return distance < support ? weight(distance) : 0
    })
    const sum = own.reduce((total, value) => total + value, 0)
    first[i] = weights.length
    start[i] = left
    count[i] = own.length
    for (const value of own) weights.push(value / sum)
  }
  return { start, count, first, weights: Float32Array.from(weights) }
}

function areaAxis(source: number, target: number): Axis {
  const step = source / target
  const start = new Int32Array(target)
  const count = new Int32Array(target)
  const first = new Int32Array(target)
  const weights: number[] = []
  for (let i = 0; i < target; i += 1) {
    first[i] = weights.length
    if (step <= 1) {
      const centre = Math.max(0, Math.min(source - 1, (i + 0.5) * step - 0.5))
      const left = Math.floor(centre)
      const share = centre - left
      start[i] = left
      if (share > 0 && left + 1 < source) {
        count[i] = 2
        weights.push(1 - share, share)
      } else {
        count[i] = 1
        weights.push(1)
      }
      continue
    }
    const from = i * step
    const to = Math.min(source, from + step)
    const left = Math.floor(from + 1e-9)
    const right = Math.min(source, Math.ceil(to - 1e-9))
    start[i] = left
    count[i] = right - left
    for (let x = left; x < right; x += 1) weights.push((Math.min(x + 1, to) - Math.max(x, from)) / step)
  }
  return { start, count, first, weights: Float32Array.from(weights) }
}

let sums = new Float32Array(0)

/**
 * Uint8Array [*, pictureWidth, 3] → Uint8Array [height, width, 3] of the rectangle `crop`.
 * 0.18 ms for 192x192 → 64x64 on the 2-core reference machine.
 */
export function resize(rgb: Uint8Array, pictureWidth: number, crop: Rectangle, width: number, height: number, kernel: Kernel = 'area'): Uint8Array {
  const out = new Uint8Array(width * height * 3)
  // kernels with negative weights overshoot
  const clamped = new Uint8ClampedArray(out.buffer)
  const across = axisOf(crop.width, width, kernel)
  const down = axisOf(crop.height, height, kernel)
  const line = width * 3
  if (sums.length < line) sums = new Float32Array(line)
  const sum = sums
  // indices below are inside the arrays by construction; the non-null forms keep the inner loop free of checks
  const { start, count, first, weights } = across
  for (let j = 0; j < height; j += 1) {
    sum.fill(0, 0, line)
    const rows = down.count[j] as number
    for (let row = 0; row < rows; row += 1) {
      const weightDown = down.weights[(down.first[j] as number) + row] as number
      const base = ((crop.y + (down.start[j] as number) + row) * pictureWidth + crop.x) * 3
      for (let i = 0, p = 0; i < width; i += 1, p += 3) {
        let at = base + (start[i] as number) * 3
        let r = 0
        let g = 0
        let b = 0
        for (let w = first[i] as number, end = w + (count[i] as number); w < end; w += 1, at += 3) {
          const weight = weights[w] as number
          r += (rgb[at] as number) * weight
          g += (rgb[at + 1] as number) * weight
          b += (rgb[at + 2] as number) * weight
        }
        sum[p] = (sum[p] as number) + r * weightDown
        sum[p + 1] = (sum[p + 1] as number) + g * weightDown
        sum[p + 2] = (sum[p + 2] as number) + b * weightDown
      }
    }
    const to = j * line
    if (kernel === 'area') for (let p = 0; p < line; p += 1) out[to + p] = (sum[p] as number) + 0.5
    else for (let p = 0; p < line; p += 1) clamped[to + p] = sum[p] as number
  }
  return out
}
