/**
 * The program of a thread that answers: it holds the models, decodes, prepares and predicts, so that the thread with the
 * sockets does none of it. Asked by `engine.ts`, one order after the other.
 */
import { parentPort } from 'node:worker_threads'
import { Fault, type FaultCode } from '@frameloop/kit/fault'
import { needsReference, preparePixels } from '@frameloop/stream-processors/features/prepare'
import type { TaskZone } from '@frameloop/stream-processors/features/zones'
import { decodePicture } from '@frameloop/stream-processors/picture/decode-picture'
import type { Rectangle } from '@frameloop/stream-processors/picture/resize'
import { pixelWork } from '@frameloop/stream-processors/pixels/pixel-work'
import type { Example, ModelFiles, ModelMeta } from '../models/model-files.ts'
import { referenceKey } from '../models/model-input.ts'
import { type EngineName, notANumber, openPredictor, type Predictor } from '../models/predictor.ts'

/** What is asked about the bytes of one input. */
export type Question =
  /** Pixels as the model wants them, of one input or of several one behind the other. */
  | { readonly kind: 'pixels'; readonly digest: string; readonly referenceKey: string }
  /** Float32 [count, height, width, channels] as they go into the network, little-endian. */
  | { readonly kind: 'tensor'; readonly digest: string }
  /** A picture that shows nothing but what is asked about. */
  | { readonly kind: 'picture'; readonly digest: string; readonly referenceKey: string }
  /** A camera's whole picture, of which zones are asked about; `models` by task. */
  | {
      readonly kind: 'zones'
      readonly cameraId: string
      readonly zones: readonly TaskZone[]
      readonly references: ReadonlyMap<string, Uint8Array>
      readonly models: ReadonlyMap<string, string>
    }

export interface Scored {
  readonly scores: readonly number[]
  /** Of `zones` only. */
  readonly zone?: string
  readonly task?: string
  /** On the picture at full size. */
  readonly rectangle?: Rectangle
}

export interface Refusal {
  readonly code: FaultCode
  readonly message: string
}

/** One answer to each question: what was scored, or why nothing was. */
export type Answer = readonly Scored[] | Refusal

export type Order =
  | { readonly kind: 'load'; readonly id: number; readonly digest: string; readonly files: ModelFiles; readonly engines: readonly EngineName[] }
  | { readonly kind: 'unload'; readonly id: number; readonly digest: string }
  /** Their bytes one behind the other in `packed`, those of each up to its place in `ends`: a view for each would cost more to send than they do. */
  | { readonly kind: 'answer'; readonly id: number; readonly questions: readonly Question[]; readonly packed: Uint8Array<ArrayBuffer>; readonly ends: readonly number[] }

export interface Loaded {
  readonly meta: ModelMeta
  readonly engine: EngineName
  readonly why: string
}

export type Report =
  | { readonly kind: 'loaded'; readonly id: number; readonly loaded: Loaded | Refusal }
  | { readonly kind: 'unloaded'; readonly id: number }
  /** `ms`: what all of it took. `room`: the memory that the questions came in, given back. */
  | { readonly kind: 'answered'; readonly id: number; readonly answers: readonly Answer[]; readonly ms: number; readonly room: ArrayBuffer }

const models = new Map<string, Predictor>()

function modelOf(digest: string): Predictor {
  const model = models.get(digest)
  if (!model) throw new Fault('MODEL_UNAVAILABLE', `The model ${digest.slice(0, 12)}… is not loaded`)
  return model
}

type Asked = Omit<Scored, 'scores'> & { readonly model: Predictor; readonly input: Example | Float32Array }

const sizeOf = ({ meta: { width, height, channels } }: Predictor): number => width * height * channels

function partsOf(bytes: Uint8Array, size: number): Uint8Array[] {
  if (bytes.length === 0 || bytes.length % size !== 0) throw new Fault('REQUEST_INVALID', `An input of the model is ${size} bytes, ${bytes.length} came`)
  return Array.from({ length: bytes.length / size }, (_, at) => bytes.subarray(at * size, (at + 1) * size))
}

const whole = { zone: '', x: 0, y: 0, width: 1, height: 1, pictureWidth: 1, pictureHeight: 1 }

/** What of the input goes into which model. */
async function examplesOf(question: Question, bytes: Uint8Array): Promise<Asked[]> {
  if (question.kind === 'pixels') {
    const model = modelOf(question.digest)
    return partsOf(bytes, sizeOf(model)).map((pixels) => ({ model, input: { referenceKey: question.referenceKey, pixels } }))
  }
  if (question.kind === 'tensor') {
    const model = modelOf(question.digest)
    // a copy, because floats begin at multiples of four
    return partsOf(bytes, 4 * sizeOf(model)).map((part) => ({ model, input: new Float32Array(part.slice().buffer) }))
  }
  if (question.kind === 'picture') {
    const model = modelOf(question.digest)
    const { preprocessingParameters: preprocessing } = model.meta
    if (needsReference(preprocessing))
      throw new Fault('REQUEST_INVALID', 'The model compares with the reference picture of a camera: send the whole picture of one to /v1/predict?camera=…')
    const picture = await decodePicture(bytes, { atLeast: preprocessing })
    return [{ model, input: { referenceKey: question.referenceKey, pixels: preparePixels(picture, whole, preprocessing) } }]
  }
  const { groups } = await pixelWork.prepare(bytes, question.zones, question.references)
  return groups.flatMap(({ packed, zones }) =>
    zones.flatMap(({ zone, tasks, rectangle, offset, shape }) =>
      tasks.map((task) => ({
        ...{ model: modelOf(question.models.get(task) ?? ''), zone, task, rectangle },
        input: { referenceKey: referenceKey(question.cameraId, zone), pixels: packed.subarray(offset, offset + shape[0] * shape[1] * shape[2]) },
      })),
    ),
  )
}

const noNumber: Refusal = { code: 'MODEL_INVALID', message: notANumber }
const refusalOf = (thrown: unknown): Refusal =>
  thrown instanceof Fault ? { code: thrown.code, message: thrown.message } : { code: 'INTERNAL', message: thrown instanceof Error ? thrown.message : String(thrown) }

/** All examples of one model go through it together, whoever asked. */
async function answer({ questions, packed, ends }: Extract<Order, { kind: 'answer' }>): Promise<Answer[]> {
  const asked: (readonly Asked[] | Refusal)[] = []
  for (const [at, question] of questions.entries()) asked.push(await examplesOf(question, packed.subarray(ends[at - 1] ?? 0, ends[at])).catch(refusalOf))
  const byModel = new Map<Predictor, Asked[]>()
  for (const one of asked.flatMap((list) => ('code' in list ? [] : list))) {
    const list = byModel.get(one.model)
    if (list) list.push(one)
    else byModel.set(one.model, [one])
  }
  const scored = new Map<Asked, readonly number[] | Refusal>()
  for (const [model, list] of byModel) {
    const scores = await model.predict(list.map(({ input }) => input)).catch(refusalOf)
    for (const [at, one] of list.entries()) scored.set(one, 'code' in scores ? scores : (scores[at] ?? noNumber))
  }
  return asked.map((list) => {
    if ('code' in list) return list
    const answers: Scored[] = []
    for (const one of list) {
      const scores = scored.get(one) as readonly number[] | Refusal
      if ('code' in scores) return scores
      const { model: _, input: __, ...about } = one
      answers.push({ ...about, scores })
    }
    return answers
  })
}

async function obey(order: Order): Promise<Report> {
  const { id } = order
  if (order.kind === 'answer') {
    const since = performance.now()
    const answers = await answer(order)
    return { kind: 'answered', id, answers, ms: performance.now() - since, room: order.packed.buffer }
  }
  if (order.kind === 'unload') {
    await models.get(order.digest)?.dispose()
    models.delete(order.digest)
    return { kind: 'unloaded', id }
  }
  try {
    // it may serve under another alias already
    const filesOf = (): ModelFiles => new Map([...order.files].map(([name, bytes]) => [name, Buffer.from(bytes)]))
    const model = models.get(order.digest) ?? (await openPredictor(filesOf(), order.digest, order.engines))
    models.set(order.digest, model)
    const { meta, engine, why } = model
    return { kind: 'loaded', id, loaded: { meta, engine, why } }
  } catch (thrown) {
    return { kind: 'loaded', id, loaded: refusalOf(thrown) }
  }
}

if (parentPort) {
  const port = parentPort
  let work: Promise<void> = Promise.resolve()
  port.on('message', (order: Order) => {
    work = work.then(async () => {
      const report = await obey(order)
      port.postMessage(report, 'room' in report ? [report.room] : [])
    })
  })
}
