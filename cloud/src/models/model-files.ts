/**
 * A model as files: what is stored in MLflow and checked by one digest. It is there in two forms, TF.js layers and ONNX,
 * and with it lie a few examples and what they were answered when it was registered: whoever loads it, with whichever
 * engine, proves that it answers the same.
 */
import { createHash } from 'node:crypto'
import { Fault } from '@frameloop/kit/fault'
import type { Preprocessing } from '@frameloop/stream-processors/features/prepare'
import type { References } from './model-input.ts'

/** `meta.json` of a model. */
export interface ModelMeta {
  readonly task: string
  readonly classes: readonly string[]
  readonly width: number
  readonly height: number
  /** 3, or 1 for luma. */
  readonly channels: number
  /** Digest of the preprocessing whose pixels it was trained on. */
  readonly preprocessing: string
  readonly preprocessingParameters: Preprocessing
  /** Per camera: sha256 of the reference picture its pixels were compared with, where they were. */
  readonly referencePictures: Readonly<Record<string, string>>
  readonly seed: number
  readonly datasetDigest: string
  /** `camera zone` in the order of the pictures in `references.bin`. */
  readonly references: readonly string[]
  /** No frame captured later is in its dataset, ISO time. */
  readonly cutAt: string
  /** Held-out examples whose pixels lie in `probes.bin`, and what the network answered: logits per class. */
  readonly probes: readonly { readonly referenceKey: string; readonly logits: readonly number[] }[]
}

export type ModelFiles = ReadonlyMap<string, Buffer>

/** Names of the files of a model, as stored under `model/` of its run. */
export const modelFileNames = ['model.json', 'weights.bin', 'model.onnx', 'references.bin', 'probes.bin', 'meta.json'] as const

/** sha256 over names and contents, in name order. */
export function digestOf(files: ModelFiles): string {
  const hash = createHash('sha256')
  for (const name of [...files.keys()].filter((file) => file !== 'MLmodel').sort()) hash.update(`${name}\0${files.get(name)?.length}\0`).update(files.get(name) ?? '')
  return hash.digest('hex')
}

/** An example to answer: the pixels of a zone, and whose zone it is. */
export interface Example {
  readonly referenceKey: string
  /** Uint8Array [height, width, channels] */
  readonly pixels: Uint8Array
}

/** The class with the highest score, and that score. */
export function bestOf(classes: readonly string[], scores: readonly number[]): { readonly answer: string; readonly confidence: number } {
  const confidence = Math.max(...scores)
  return { answer: classes[scores.indexOf(confidence)] ?? '', confidence }
}

export interface ModelContent {
  readonly meta: ModelMeta
  readonly references: References
  readonly probes: readonly (Example & { readonly logits: readonly number[] })[]
  file(name: (typeof modelFileNames)[number]): Buffer
}

/** Pictures of one size, one behind the other. */
function picturesIn(bytes: Buffer, count: number, size: number, what: string): Uint8Array[] {
  if (bytes.length !== count * size) throw new Fault('MODEL_INVALID', `The model's ${what} are ${bytes.length} bytes; ${count} pictures of ${size} bytes were expected`)
  return Array.from({ length: count }, (_, at) => new Uint8Array(bytes.subarray(at * size, (at + 1) * size)))
}

/** Throws `MODEL_INVALID` when there is none among the files. */
export function metaOf(files: ReadonlyMap<string, Uint8Array>): ModelMeta {
  const bytes = files.get('meta.json')
  if (!bytes) throw new Fault('MODEL_INVALID', 'The model has no file meta.json')
  return JSON.parse(Buffer.from(bytes).toString('utf8')) as ModelMeta
}

/** Throws `MODEL_INVALID` when the files are not those of `digest` or do not fit together. */
export function openModelFiles(files: ModelFiles, digest: string): ModelContent {
  const found = digestOf(files)
  if (found !== digest) throw new Fault('MODEL_INVALID', `The model's files hash to ${found.slice(0, 12)}…, ${digest.slice(0, 12)}… was promoted`)
  const file = (name: string): Buffer => {
    const bytes = files.get(name)
    if (!bytes) throw new Fault('MODEL_INVALID', `The model has no file ${name}`)
    return bytes
  }
  const meta = metaOf(files)
  const size = meta.width * meta.height * meta.channels
  const references = picturesIn(file('references.bin'), meta.references.length, size, 'reference pictures')
  const probes = picturesIn(file('probes.bin'), meta.probes.length, size, 'probes')
  return {
    meta,
    references: new Map(meta.references.map((key, at) => [key, references[at] as Uint8Array])),
    probes: meta.probes.map((probe, at) => ({ ...probe, pixels: probes[at] as Uint8Array })),
    file,
  }
}
