/** Figures about a picture that are cheap enough for every frame: brightness, sharpness, a perceptual hash. */
import { resize } from './resize.ts'

export interface Quality {
  /** Mean luma (BT.601), 0..255. */
  readonly brightness: number
  /** Variance of the 4-neighbour Laplacian of luma (Pech-Pacheco et al., ICPR 2000); low is blurred. */
  readonly sharpness: number
  /** 64-bit difference hash (N. Krawetz, "Kind of Like That", 2013): 16 hex digits; near pictures differ in few bits. */
  readonly phash: string
}

/** Of an image Uint8Array [height, width, 3]. */
export function measureQuality(rgb: Uint8Array, width: number, height: number): Quality {
  const luma = new Float32Array(width * height)
  let total = 0
  for (let at = 0, p = 0; at < luma.length; at += 1, p += 3) {
    const value = 0.299 * (rgb[p] as number) + 0.587 * (rgb[p + 1] as number) + 0.114 * (rgb[p + 2] as number)
    luma[at] = value
    total += value
  }
  let sum = 0
  let squares = 0
  let count = 0
  for (let y = 1; y < height - 1; y += 1) {
    for (let at = y * width + 1, end = y * width + width - 1; at < end; at += 1) {
      const edge = 4 * (luma[at] as number) - (luma[at - 1] as number) - (luma[at + 1] as number) - (luma[at - width] as number) - (luma[at + width] as number)
      sum += edge
      squares += edge * edge
      count += 1
    }
  }
  const mean = count === 0 ? 0 : sum / count
  return { brightness: round(total / luma.length), sharpness: round(count === 0 ? 0 : squares / count - mean * mean), phash: differenceHash(rgb, width, height) }
}

function round(value: number): number {
  return Math.round(value * 100) / 100
}

function differenceHash(rgb: Uint8Array, width: number, height: number): string {
  const small = resize(rgb, width, { x: 0, y: 0, width, height }, 9, 8)
  let hex = ''
  for (let y = 0; y < 8; y += 1) {
    let bits = 0
    for (let x = 0; x < 8; x += 1) {
      const at = (y * 9 + x) * 3
      const left = (small[at] as number) + (small[at + 1] as number) + (small[at + 2] as number)
      const right = (small[at + 3] as number) + (small[at + 4] as number) + (small[at + 5] as number)
      bits = (bits << 1) | (left > right ? 1 : 0)
    }
    hex += bits.toString(16).padStart(2, '0')
  }
  return hex
}
