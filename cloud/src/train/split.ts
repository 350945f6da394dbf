/**
 * Which examples are held out: whole passages, never neighbouring frames of what was trained on.
 * A passage is a run of one label of one zone without a gap of two seconds; long ones are cut into chunks of four, where the
 * clock has whole ones. A quarter of the chunks is held out, drawn by the four seconds in which each begins: what was drawn
 * stays so whatever is captured, labelled or left out before and after, and a champion is hardly judged on what it has learned
 * (a passage may have been going on when it was cut, or there was too little to draw from). Training examples of the zone
 * within two seconds of one are dropped. A zone of which a class would be in one part only is trained on whole and not judged.
 */
import type { Ms } from '@frameloop/kit/units'

export interface Placed {
  readonly cameraId: string
  readonly zone: string
  readonly label: string
  /** Media offset where there is one, else capture time. */
  readonly at: Ms
}

export interface Split {
  /** Indexes into the examples. */
  readonly train: readonly number[]
  readonly heldOut: readonly number[]
  /** `camera zone` of zones whose every class is in both parts. */
  readonly judged: readonly string[]
  readonly notJudged: readonly string[]
}

const gap: Ms = 2_000
const chunkLength: Ms = 4_000
/** Fewer frames than this prove nothing; a camera that takes one a second has as many in a chunk. */
const smallestChunk = 4
const share = 1 / 4

interface Chunk {
  readonly label: string
  /** Which four seconds it begins in. */
  readonly cell: number
  readonly members: readonly number[]
  readonly from: Ms
  readonly to: Ms
}

function chunksOf(examples: readonly Placed[], members: readonly number[]): Chunk[] {
  const sorted = [...members].sort((a, b) => (examples[a]?.at ?? 0) - (examples[b]?.at ?? 0))
  const runs: number[][] = []
  for (const index of sorted) {
    const run = runs.at(-1)
    const last = run ? examples[run.at(-1) ?? -1] : undefined
    const now = examples[index]
    if (run && last && now && last.label === now.label && now.at - last.at <= gap) run.push(index)
    else runs.push([index])
  }
  const chunks: Chunk[] = []
  for (const run of runs) {
    const at = (index: number | undefined): Ms => examples[index ?? -1]?.at ?? 0
    const cellOf = (index: number | undefined): number => Math.floor(at(index) / chunkLength)
    const isLong = at(run.at(-1)) - at(run[0]) > chunkLength
    const pieces: number[][] = []
    for (const index of run) {
      const piece = pieces.at(-1)
      if (piece && (!isLong || cellOf(piece[0]) === cellOf(index))) piece.push(index)
      else pieces.push([index])
    }
    for (const piece of pieces) chunks.push({ label: examples[piece[0] ?? -1]?.label ?? '', cell: cellOf(piece[0]), members: piece, from: at(piece[0]), to: at(piece.at(-1)) })
  }
  return chunks
}

function chooseHeldOut(chunks: readonly Chunk[]): Chunk[] {
  const usable = chunks.filter(({ members }) => members.length >= smallestChunk)
  // scattered, so that what comes again every few seconds is not always on the same side (Knuth, TAOCP 3, 6.4: multiplicative hashing)
  const isDrawn = ({ cell }: Chunk): boolean => (Math.imul(cell, 2_654_435_761) >>> 0) / 2 ** 32 < share
  const drawn = usable.filter(isDrawn)
  // of few there may be none, or all of them
  return drawn.length > 0 && drawn.length < usable.length ? drawn : usable.slice(1, 2)
}

/** Pure and without chance: equal examples give equal parts. */
export function splitByPassage(examples: readonly Placed[]): Split {
  const zones = new Map<string, number[]>()
  examples.forEach(({ cameraId, zone }, index) => {
    const key = `${cameraId} ${zone}`
    zones.set(key, [...(zones.get(key) ?? []), index])
  })
  const train: number[] = []
  const heldOut: number[] = []
  const judged: string[] = []
  const notJudged: string[] = []
  for (const [zone, members] of [...zones].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const chunks = chunksOf(examples, members)
    const labels = [...new Set(chunks.map(({ label }) => label))].sort()
    const apart = labels.flatMap((label) => chooseHeldOut(chunks.filter((chunk) => chunk.label === label)))
    const inside = new Set(apart.flatMap((chunk) => chunk.members))
    const rest = members.filter((index) => {
      const at = examples[index]?.at ?? 0
      return !inside.has(index) && !apart.some(({ from, to }) => at > from - gap && at < to + gap)
    })
    const has = (part: Iterable<number>, label: string): boolean => [...part].some((index) => examples[index]?.label === label)
    if (labels.length < 2 || !labels.every((label) => has(inside, label) && has(rest, label))) {
      train.push(...members)
      notJudged.push(zone)
      continue
    }
    judged.push(zone)
    heldOut.push(...inside)
    train.push(...rest)
  }
  const ascending = (a: number, b: number): number => a - b
  return { train: train.sort(ascending), heldOut: heldOut.sort(ascending), judged, notJudged }
}
