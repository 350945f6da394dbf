/** What `serve.ts` asks of `serve-runner.ts`, and what that finds. */

/** Beside those of the chain. */
export const liveTopics = { input: 'bench.features', output: 'bench.predictions' } as const

export type ServeJob =
  | { readonly kind: 'batching'; readonly folder: string; readonly seconds: number }
  /** `isBare`: answers are made up, which shows what is left of two cores beside everything but the engine. */
  | { readonly kind: 'live'; readonly isBare: boolean; readonly name: string; readonly folder: string; readonly env: Readonly<Record<string, string>>; readonly frames: number }
  | { readonly kind: 'inside'; readonly folder: string; readonly env: Readonly<Record<string, string>>; readonly frames: number }
  | { readonly kind: 'feeds'; readonly port: number; readonly cameras: number; readonly perSecond: number; readonly pictureBytes: number }

export interface BatchingFound {
  /** Answers a second by fixed batch size. */
  readonly fixed: Readonly<Record<number, number>>
  readonly adaptive: number
  /** At a tenth of the load, ms. */
  readonly light: { readonly p95: number; readonly p95Alone: number }
}
/** Frames and zones that are through, and the CPU time of this process for them. */
export interface LiveFound {
  readonly framesPerSecond: number
  readonly cpuMs: number
}
export interface FeedsFound {
  readonly residentMB: number
  readonly skipped: number
}
