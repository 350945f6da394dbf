/** Medians of each pixel and channel over the crops. */
export function medianPicture(crops: readonly Uint8Array[]): Uint8Array {
  const length = crops[0]?.length ?? 0
  const out = new Uint8Array(length)
  const counts = new Uint32Array(256)
  const half = crops.length / 2
  for (let at = 0; at < length; at += 1) {
    counts.fill(0)
    for (const crop of crops) {
      const value = crop[at] ?? 0
      counts[value] = (counts[value] ?? 0) + 1
    }
    let seen = 0
    let value = 0
    while (value < 255) {
      seen += counts[value] ?? 0
      if (seen >= half) break
      value += 1
    }
    out[at] = value
  }
  return out
}
