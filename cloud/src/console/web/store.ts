/** What the page knows: signals fed by the live feed and by the overview. */
import { connectTo, type LivePrediction } from '@frameloop/client'
import { signal } from '@preact/signals'

export type Answer = LivePrediction

export interface Stage {
  readonly stage: string
  readonly received: number
  readonly rejected: number
  readonly lag: number
  readonly up: boolean
}
export interface Model {
  readonly task: string
  readonly version: string
  readonly alias: string | null
  readonly reason: string | null
  readonly balancedAccuracy: number | null
  readonly n: number | null
  readonly createdAt: string
  readonly runId: string
}
export interface Run {
  readonly requestId: string
  readonly task: string
  readonly cause: string
  readonly state: string
  readonly epoch: number
  readonly epochs: number
  readonly loss: number | null
  readonly version: string
  readonly promoted: boolean
  readonly reason: string
  readonly requestedAt: string
}
export interface Quality {
  readonly task: string
  readonly modelVersion: string
  readonly n: number
  readonly balancedAccuracy: number
  readonly accuracy: number
  readonly majorityAccuracy: number
  readonly classes: number
}
export interface Camera {
  readonly cameraId: string
  readonly state: string
  readonly message: string
  readonly sourceKind: string
  readonly framesPerSecond: number
  readonly reportedAt: string
  /** Its agent reports no more. */
  readonly isSilent: boolean
}
export interface Rejection {
  readonly stage: string
  readonly reason: string
  readonly message: string
  readonly cameraId: string
  readonly at: string
}
export interface Overview {
  readonly cameras: readonly Camera[]
  readonly models: readonly Model[]
  readonly runs: readonly Run[]
  readonly quality: readonly Quality[]
  readonly rejections: readonly Rejection[]
  readonly stages: readonly Stage[]
  readonly at: number
}

export const overview = signal<Overview | undefined>(undefined)
/** Records a second by stage, between the last two overviews. */
export const rates = signal<Readonly<Record<string, number>>>({})
/** The newest answers of each camera, by zone; all of one frame. */
export const answers = signal<Readonly<Record<string, Readonly<Record<string, Answer>>>>>({})
export const connected = signal(false)

async function refresh(): Promise<void> {
  try {
    const response = await fetch('/api/overview')
    if (!response.ok) return
    const next = (await response.json()) as Overview
    const before = overview.value
    if (before && next.at > before.at) {
      const seconds = (next.at - before.at) / 1000
      rates.value = Object.fromEntries(
        next.stages.map((stage) => {
          const old = before.stages.find((one) => one.stage === stage.stage)
          // one that did not answer has counted nothing
          return [stage.stage, old?.up && stage.up ? Math.max(0, (stage.received - old.received) / seconds) : 0]
        }),
      )
    }
    overview.value = next
  } catch {
    // the server is being restarted; the next question will be answered
  }
}

/** How long after a refusal inference is asked again: a key of the console's may be put right meanwhile. */
const refusedPause = 10_000

async function listen(): Promise<void> {
  const feed = connectTo().feed({
    onState: (state) => {
      connected.value = state === 'live'
    },
  })
  try {
    for await (const message of feed) {
      if (message.kind !== 'prediction' || message.lane !== 'live') continue
      const { cameraId } = message
      const known = answers.value[cameraId] ?? {}
      // answers about an older frame make room
      const kept = Object.fromEntries(Object.entries(known).filter(([, answer]) => answer.frameAt >= message.frameAt - 2_000))
      answers.value = { ...answers.value, [cameraId]: { ...kept, [`${message.task} ${message.zone}`]: message } }
    }
  } catch {
    setTimeout(() => void listen(), refusedPause)
  }
}

export function start(): void {
  void listen()
  void refresh()
  setInterval(() => void refresh(), 1_500)
}
