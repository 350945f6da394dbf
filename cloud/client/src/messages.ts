/** What an inference server says; it states its own answers by these types. */

export interface ClassScore {
  readonly class: string
  /** 0 to 1; those of all classes sum to 1. */
  readonly score: number
}

/** A class, how sure, and which model says so. */
export interface Answer {
  readonly answer: string
  /** Score of the answer. */
  readonly confidence: number
  readonly scores: readonly ClassScore[]
  readonly modelName: string
  readonly modelVersion: string
  readonly modelDigest: string
  /** Digest of the preprocessing. */
  readonly preprocessing: string
}

/** About a picture that shows nothing but what was asked about. */
export interface PictureAnswer extends Answer {
  readonly task: string
  readonly traceId: string
}

/** About one zone; where it lies on the picture, in pixels. */
export interface ZoneAnswer extends Answer {
  readonly zone: string
  readonly task: string
  /** Names the model that answered this one, for `frameloop follow`. */
  readonly traceId: string
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

/** About the zones of a camera's picture. */
export interface FrameAnswers {
  readonly camera: string
  /** Of the first task; each answer has that of its own. */
  readonly traceId: string
  /** Of a frame of the catalog. */
  readonly frameId?: string
  readonly answers: readonly ZoneAnswer[]
}

export interface ServedModel {
  readonly task: string
  readonly modelName: string
  readonly version: string
  readonly alias: string
  readonly digest: string
  readonly engine: string
  readonly classes: readonly string[]
}

/** A problem document (RFC 9457). */
export interface Problem {
  readonly status: number
  readonly code: string
  readonly detail: string
  /** The next step. */
  readonly hint: string
}

/** A live answer about one zone of a frame. Times are milliseconds since 1970. */
export interface LivePrediction extends ZoneAnswer {
  readonly kind: 'prediction'
  /** `backlog`: its frame waited for a link or a process, and is no news. */
  readonly lane: 'live' | 'backlog'
  readonly cameraId: string
  readonly frameId: string
  readonly frameAt: number
  /** When each hop of the way was done: by the clock of the agent, of the broker, and of the stages. */
  readonly capturedAt: number
  readonly arrivedAt: number
  readonly validatedAt: number
  readonly extractedAt: number
  readonly preparedAt: number
  readonly answeredAt: number
  readonly pictureKey: string
  readonly pictureWidth: number
  readonly pictureHeight: number
  /** Where the feed goes on after this one. */
  readonly resume: string
  /** Answers that this reader was too slow for, since the last message that said so. */
  readonly skipped?: number
}

/** The picture of the frame that the answers before it are about. */
export interface Picture {
  readonly kind: 'picture'
  readonly cameraId: string
  readonly frameId: string
  readonly contentType: string
  readonly bytes: Uint8Array<ArrayBuffer>
}

/** Between where a feed was left and what the server still knows, something is missing. */
export interface Gap {
  readonly kind: 'gap'
  readonly partition: number
  readonly after: number
  readonly next: number | null
}

export type FeedMessage = LivePrediction | Picture | Gap
