/** Filters on interleaved pixels, Uint8Array [height, width, channels] → the same shape; nothing is changed in place. */

/** Mean luma weights (BT.601). */
const [red, green, blue] = [0.299, 0.587, 0.114]

/** [height, width, 3] → [height, width, 1], luma. */
export function toGray(rgb: Uint8Array): Uint8Array {
  const gray = new Uint8Array(rgb.length / 3)
  for (let at = 0, p = 0; at < gray.length; at += 1, p += 3) gray[at] = red * (rgb[p] as number) + green * (rgb[p + 1] as number) + blue * (rgb[p + 2] as number) + 0.5
  return gray
}

/** Histogram equalisation of luma (Gonzalez & Woods, Digital Image Processing, 3.3.1); colour differences are kept. */
export function equalise(pixels: Uint8Array, channels: number): Uint8Array {
  const luma = channels === 1 ? pixels : toGray(pixels)
  const counts = new Uint32Array(256)
  for (const value of luma) counts[value] = (counts[value] as number) + 1
  const lowest = counts.findIndex((count) => count > 0)
  const below = counts[lowest] ?? 0
  const scale = luma.length === below ? 0 : 255 / (luma.length - below)
  const level = new Uint8Array(256)
  for (let value = 0, seen = 0; value < 256; value += 1) {
    seen += counts[value] as number
    // one level alone has nothing to be spread over
    level[value] = scale === 0 ? value : Math.max(0, seen - below) * scale + 0.5
  }
  const out = new Uint8ClampedArray(pixels.length)
  for (let at = 0, p = 0; at < luma.length; at += 1) {
    const value = luma[at] as number
    const change = (level[value] as number) - value
    for (let channel = 0; channel < channels; channel += 1, p += 1) out[p] = (pixels[p] as number) + change
  }
  return new Uint8Array(out.buffer)
}

/** Median of each 3x3 neighbourhood, per channel: takes out single wild pixels and keeps edges. Borders repeat. */
export function denoise(pixels: Uint8Array, width: number, height: number, channels: number): Uint8Array {
  const out = new Uint8Array(pixels.length)
  const window = new Uint8Array(9)
  overNeighbours(width, height, channels, (at, neighbours) => {
    for (let n = 0; n < 9; n += 1) window[n] = pixels[neighbours[n] as number] as number
    window.sort()
    out[at] = window[4] as number
  })
  return out
}

/** Unsharp mask: each pixel moves away from the mean of its 3x3 neighbourhood by as much as it differs from it. */
export function sharpen(pixels: Uint8Array, width: number, height: number, channels: number): Uint8Array {
  const out = new Uint8ClampedArray(pixels.length)
  overNeighbours(width, height, channels, (at, neighbours) => {
    let sum = 0
    for (let n = 0; n < 9; n += 1) sum += pixels[neighbours[n] as number] as number
    out[at] = 2 * (pixels[at] as number) - sum / 9
  })
  return new Uint8Array(out.buffer)
}

/** |pixels - reference|, per channel. */
export function difference(pixels: Uint8Array, reference: Uint8Array): Uint8Array {
  return pixels.map((value, at) => Math.abs(value - (reference[at] as number)))
}

function overNeighbours(width: number, height: number, channels: number, visit: (at: number, neighbours: Int32Array) => void): void {
  const neighbours = new Int32Array(9)
  for (let y = 0; y < height; y += 1) {
    const rows = [Math.max(0, y - 1), y, Math.min(height - 1, y + 1)]
    for (let x = 0; x < width; x += 1) {
      const columns = [Math.max(0, x - 1), x, Math.min(width - 1, x + 1)]
      for (let channel = 0; channel < channels; channel += 1) {
        let n = 0
        for (const row of rows) for (const column of columns) neighbours[n++] = (row * width + column) * channels + channel
        visit((y * width + x) * channels + channel, neighbours)
      }
    }
  }
}
