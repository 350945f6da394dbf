/** Every topic: what travels on it, how many partitions, how long it is kept. The embedded stack and the deployment create them from here. */
import type { Bytes, Ms } from '@frameloop/kit/units'
import type { Events } from './events.ts'

export type EventName = keyof Events

export interface Topic<Name extends EventName = EventName> {
  readonly name: string
  readonly event: Name
  readonly retention: Ms
  readonly retentionBytes?: Bytes
  /** The latest record of a key is kept for good. */
  readonly compacted: boolean
}

const day = 86_400_000
const gigabyte = 1_000_000_000

function topic<Name extends EventName>(name: string, event: Name, options: { readonly days?: number; readonly bytes?: Bytes; readonly compacted?: boolean } = {}): Topic<Name> {
  return { name, event, retention: (options.days ?? 7) * day, compacted: options.compacted ?? false, ...(options.bytes ? { retentionBytes: options.bytes } : {}) }
}

export const topics = {
  mediaCaptured: topic('media.captured', 'MediaCaptured'),
  mediaBackfill: topic('media.backfill', 'MediaCaptured'),
  mediaLost: topic('media.lost', 'MediaLost'),
  mediaValidated: topic('media.validated', 'MediaValidated'),
  mediaValidatedBackfill: topic('media.validated.backfill', 'MediaValidated'),
  framesExtracted: topic('frames.extracted', 'FrameExtracted'),
  framesExtractedBackfill: topic('frames.extracted.backfill', 'FrameExtracted'),
  featuresPrepared: topic('features.prepared', 'FeaturesPrepared', { days: 3, bytes: 20 * gigabyte }),
  predictionsMade: topic('predictions.made', 'PredictionMade'),
  labelsRecorded: topic('labels.recorded', 'LabelRecorded', { days: 30 }),
  modelsChanged: topic('models.changed', 'ModelChanged', { compacted: true }),
  trainingRequested: topic('training.requested', 'TrainingRequested', { days: 30 }),
  trainingEnded: topic('training.ended', 'TrainingEnded', { days: 30 }),
  agentsDesired: topic('agents.desired', 'AgentDesired', { compacted: true }),
  agentsReported: topic('agents.reported', 'AgentReported', { compacted: true }),
} as const satisfies Record<string, Topic>

export const allTopics: readonly Topic[] = Object.values(topics)

/** Live and backlog travel on topics of their own, so that hours of backlog never stand in front of a live frame. */
export function inLane<Name extends EventName>(lane: string, live: Topic<Name>, backlog: Topic<Name>): Topic<Name> {
  return lane === 'live' ? live : backlog
}

/** Topics that stages consume, and so the ones that have dead letters. */
export const consumedTopics: readonly Topic[] = [
  topics.mediaCaptured,
  topics.mediaBackfill,
  topics.mediaLost,
  topics.mediaValidated,
  topics.mediaValidatedBackfill,
  topics.framesExtracted,
  topics.framesExtractedBackfill,
  topics.featuresPrepared,
]

/** A month. */
export const deadLetterRetention: Ms = 30 * 86_400_000

export function deadLetterTopic(topicName: string): string {
  return `${topicName}.dead-letters`
}

export function isDeadLetterTopic(topicName: string): boolean {
  return topicName.endsWith('.dead-letters')
}

/** What the catalog records and the archive keeps: every event, and every dead letter. */
export const cataloguedTopics: readonly string[] = [...allTopics.map(({ name }) => name), ...consumedTopics.map(({ name }) => deadLetterTopic(name))]

/** Where a stage with memory keeps it; same partitions as its input, so that a partition and its memory move together. */
export function stateTopic(stage: string): string {
  return `${stage}.state`
}

/** Where stages note what they are about to work on, to find the record that kills them; compacted. */
export const attemptsTopic = 'chain.attempts'

/** Stages whose memory lives in a compacted changelog. */
export const statefulStages: readonly string[] = ['validate']

/** TopicNameStrategy of the Confluent registry. */
export function subjectOf(topicName: string): string {
  return `${topicName}-value`
}
