/**
 * Feeds, streams and predictions of a frameloop inference server, for browsers and Node. Nothing but the platform is needed:
 * `fetch` and `WebSocket` (Node has had one since 22; before that, pass the one of the package `ws`).
 */
export { type Client, type ClientOptions, connectTo } from './client.ts'
export type { Feed, FeedWish } from './feed.ts'
export type { Answer, ClassScore, FeedMessage, FrameAnswers, Gap, LivePrediction, Picture, PictureAnswer, Problem, ServedModel, ZoneAnswer } from './messages.ts'
export { FrameloopError } from './problem.ts'
export type { PredictionStream, StreamAbout, StreamAnswer, StreamOptions } from './stream.ts'
