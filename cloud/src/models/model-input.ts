/**
 * What goes into a network, declared once for training and serving.
 * A model judges how a zone differs from what it usually looks like: 4 * |pixel - reference| with the median of the
 * training crops as reference (chosen by measurement, `docs/decisions/0003`).
 */

/** Per `camera zone`: Uint8Array [height, width, channels], the median of the training crops. */
export type References = ReadonlyMap<string, Uint8Array>

export function referenceKey(cameraId: string, zone: string): string {
  return `${cameraId} ${zone}`
}

const contrast = 4

export interface Augmentation {
  readonly gain: number
  readonly bias: number
  readonly flip: boolean
}

const plain: Augmentation = { gain: 1, bias: 0, flip: false }
const perStep = contrast / 255

/** Without augmentation: a plain loop over whole numbers, a fifth of the general one's time. */
function writeDistance(out: Float32Array, offset: number, crop: Uint8Array, reference: Uint8Array): void {
  for (let at = 0; at < crop.length; at += 1) out[offset + at] = Math.abs((crop[at] as number) - (reference[at] as number)) * perStep
}

/** What a zone without a reference is compared with. */
let black: Uint8Array = new Uint8Array(0)

/** Writes one example, Float32 [height, width, channels], at `offset` of `out`. A zone without a reference is compared with black. */
export function writeInput(
  out: Float32Array,
  offset: number,
  crop: Uint8Array,
  reference: Uint8Array | undefined,
  { width, channels }: { readonly width: number; readonly channels: number },
  augmentation: Augmentation = plain,
): void {
  if (augmentation === plain) {
    if (black.length < crop.length) black = new Uint8Array(crop.length)
    writeDistance(out, offset, crop, reference ?? black)
    return
  }
  const { gain, bias, flip } = augmentation
  const line = width * channels
  for (let at = 0; at < crop.length; at += 1) {
    const value = ((crop[at] as number) / 255 - 0.5) * gain + 0.5 + bias
    const difference = contrast * Math.abs(value - (reference ? (reference[at] as number) / 255 : 0))
    if (!flip) out[offset + at] = difference
    else {
      const inLine = at % line
      const channel = inLine % channels
      out[offset + at - inLine + (line - channels - (inLine - channel)) + channel] = difference
    }
  }
}
