/** Crop and area-average resize, what OpenCV calls INTER_AREA: every source pixel counts by the area it covers. Ours, so that it is the same everywhere. */

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

/** For each target pixel the source pixels it averages and their weights; linear interpolation where it enlarges. */
function axisOf(source: number, target: number): Axis {
  const key = `${source} ${target}`
  const known = axes.get(key)
  if (known) return known
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
  const axis = { start, count, first, weights: Float32Array.from(weights) }
  // sizes are few (zones of cameras); a flood of odd ones must not fill the memory
  if (axes.size > 256) axes.clear()
  axes.set(key, axis)
  return axis
}

let sums = new Float32Array(0)

/**
 * Uint8Array [*, pictureWidth, 3] → Uint8Array [height, width, 3] of the rectangle `crop`. Written into `out` when given.
 * 0.18 ms for 192x192 → 64x64 on the 2-core reference machine.
 */
export function areaResize(
  rgb: Uint8Array,
  pictureWidth: number,
  crop: Rectangle,
  width: number,
  height: number,
  out: Uint8Array = new Uint8Array(width * height * 3),
): Uint8Array {
  const across = axisOf(crop.width, width)
  const down = axisOf(crop.height, height)
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
    for (let p = 0; p < line; p += 1) out[to + p] = (sum[p] as number) + 0.5
  }
  return out
}
