/** Pixels of a picture that was taken on its side, as people see it. */

/** By EXIF orientation 2..8: where each pixel of the upright picture comes from; `w` and `h` are the last column and row as stored (EXIF 2.3, 4.6.4 A). */
const sources: Readonly<Record<number, (x: number, y: number, w: number, h: number) => readonly [x: number, y: number]>> = {
  2: (x, y, w) => [w - x, y],
  3: (x, y, w, h) => [w - x, h - y],
  4: (x, y, _, h) => [x, h - y],
  5: (x, y) => [y, x],
  6: (x, y, _, h) => [y, h - x],
  7: (x, y, w, h) => [w - y, h - x],
  8: (x, y, w) => [w - y, x],
}

/** Whether width and height are exchanged. */
export const isOnItsSide = (orientation: number): boolean => orientation >= 5

/** Uint8Array [height, width, 3] as stored → [height, width, 3] upright, of a size that is exchanged where it lay on its side. */
export function upright(rgb: Uint8Array, width: number, height: number, orientation: number): Uint8Array {
  const source = sources[orientation]
  if (!source) return rgb
  const out = new Uint8Array(rgb.length)
  const [wide, high] = isOnItsSide(orientation) ? [height, width] : [width, height]
  // the steps are the same everywhere: two places tell them
  const placeOf = (x: number, y: number): number => {
    const [column, row] = source(x, y, width - 1, height - 1)
    return row * width + column
  }
  const begin = placeOf(0, 0)
  const [acrossBy, downBy] = [placeOf(1, 0) - begin, placeOf(0, 1) - begin]
  let to = 0
  for (let y = 0; y < high; y += 1) {
    let from = 3 * (begin + y * downBy)
    for (let x = 0; x < wide; x += 1, to += 3, from += 3 * acrossBy) {
      out[to] = rgb[from] as number
      out[to + 1] = rgb[from + 1] as number
      out[to + 2] = rgb[from + 2] as number
    }
  }
  return out
}
