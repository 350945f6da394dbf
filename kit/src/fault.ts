/**
 * Every error that frameloop throws on purpose: a code that programs can match, a sentence with the values in it,
 * and what to do next. New code → new row in the table below.
 */
const hints = {
  CONFIG_INVALID: 'Correct the settings listed and start again.',
  PORT_TAKEN: 'Stop the program that holds the port, or choose another one with the setting named.',
  TOOL_MISSING: 'Run `npx frameloop doctor`: it names what is missing and the command that installs it.',
  STACK_RUNS: 'Wait until it is done, or end it with `npx frameloop down`.',
  STACK_NOT_RUNNING: 'Start it with `npm start` (or `npx frameloop up`), or name the services by environment variable.',
  PART_NOT_READY: 'Read its log with `npx frameloop logs PART`.',
  OBJECT_MISSING: 'The object may have been erased or its bucket replaced; `frameloop follow ID` tells what is known of it.',
  OBJECT_CONFLICT: 'Two different contents claim one key. Keep both copies and report it: keys are made from ids and must not collide.',
  OBJECT_STORE_UNAVAILABLE: 'Check that the object store runs and that the endpoint and keys are right.',
  REGISTRY_UNAVAILABLE: 'Check that the schema registry runs and that SCHEMA_REGISTRY_URL ends in /apis/ccompat/v7.',
  SCHEMA_INCOMPATIBLE: 'Only add fields that have a default, and never change a type: replay must read every older record.',
  SCHEMA_UNKNOWN: 'The record names a schema id that the registry does not know: its producer used another registry.',
  RECORD_MALFORMED: 'Only values in Confluent wire format (0x00, schema id, Avro) belong on this topic.',
  KAFKA_UNAVAILABLE: 'Check that the brokers answer at KAFKA_BROKERS.',
  PRODUCER_FENCED: 'Another instance with the same name took over. Give each instance its own INSTANCE setting.',
  DATABASE_UNAVAILABLE: 'Check that PostgreSQL answers at DATABASE_URL.',
  SPOOL_BROKEN: 'The spool folder cannot be used as it is; see the message. Nothing was deleted.',
  SPOOL_LOCKED: 'Another agent uses this spool. Stop it, or give this one its own folder.',
  SPOOL_FULL: 'Free disk space, raise the budget, or repair the uplink so that the spool can drain.',
  SOURCE_UNREADABLE: 'Check that the file, folder or camera address exists and that this user may read it.',
  CATALOG_BEHIND: 'Ask again when `npx frameloop status` shows no lag of the catalog.',
  HISTORY_INCOMPLETE: 'Choose a later beginning; `npx frameloop replay --help` tells how a range is named.',
  REPLAY_UNKNOWN: '`npx frameloop replay list` names the replays there are.',
  REPLAYED: 'Copies of a replay belong on its side topic only; live topics take what agents and the ingest API announce.',
  PICTURE_UNREADABLE: 'Send a whole JPEG, PNG or WebP picture.',
  PICTURE_TOO_LARGE: 'Send a smaller picture, or raise the limit of the stage.',
  PICTURE_ANIMATED: 'Send its pictures one by one, or as a clip.',
  SIGNATURE_INVALID: 'Somebody announces in the name of this agent, or its key was changed: `frameloop agents key AGENT FILE` makes a new one known.',
  SIZE_MISMATCH: 'The object was cut off or written over after it was announced; send it again under a new id.',
  DIGEST_MISMATCH: 'The object was damaged or written over after it was announced; send it again under a new id.',
  TYPE_MISMATCH: 'Announce the object as what it is: the content type must be that of its bytes.',
  CLIP_TOO_LARGE: 'Send a shorter or smaller clip, or raise the limits of the stage.',
  OUTPUT_INVALID: 'A field of the record holds what its successor cannot: correct its producer.',
  PROCESS_KILLED: 'The record ended its process several times; look at its object before it is sent again.',
  CLIP_UNREADABLE: 'Send a whole video file that ffmpeg can read.',
  UPLOAD_INVALID: 'See the field named and the API description at /openapi.json.',
  UPLOAD_CONFLICT: 'An Idempotency-Key names one content for good; use a new key for new content.',
  LABELS_INVALID: 'Correct the lines named and import the file again: lines already stored are recognised.',
  ZONES_INVALID: 'A zone file is a JSON array of { "zone", "x", "y", "width", "height", "pictureWidth", "pictureHeight" }.',
  FRAME_UNKNOWN: 'Frame and media ids stand on the console and in `frameloop predictions export`.',
  CAMERA_UNKNOWN: 'The console lists the cameras.',
  TASK_UNKNOWN: 'A task exists once it has zones: `frameloop up --zones FILE --task NAME`.',
  DATASET_EMPTY: 'Import labels that lie inside the range, and make sure that its frames have reached features.prepared.',
  MODEL_UNAVAILABLE: 'Train one: `npx frameloop train TASK --wait`.',
  MODEL_UNKNOWN: '`frameloop models list` and /v1/models name those that are served.',
  MODEL_INVALID: 'The files of this version do not match its digest or its task; train it again.',
  MLFLOW_UNAVAILABLE: 'Check that MLflow answers at MLFLOW_TRACKING_URI.',
  RUN_FAILED: 'Read why in `npx frameloop logs train` and in the run on MLflow.',
  REQUEST_INVALID: 'See --help of the command, or the API description at /openapi.json.',
  NOT_FOUND: 'See --help of the command, or the API description at /openapi.json.',
  UNAUTHORIZED: '`frameloop keys add NAME` makes a key; send it as Authorization: Bearer, or get a ticket with it for a WebSocket in a browser.',
  NOT_ALLOWED: '`frameloop keys list` shows what each key reaches.',
  ORIGIN_NOT_ALLOWED: 'Add the origin of the page to ALLOWED_ORIGINS, or send a key.',
  RATE_LIMITED: 'Ask more slowly, or have the rate of the key raised.',
  THREAD_DIED: 'Ask again: another thread takes its place.',
  OVERLOADED: 'Ask again after the time in Retry-After, or run more replicas.',
  DEADLINE_PASSED: 'Give it more time, or ask less at once.',
  TIMED_OUT: 'Try again; if it happens again, `npx frameloop status` shows which part lags.',
  INTERNAL: 'This is a bug of frameloop. Please report it with the log lines around it.',
} as const

export type FaultCode = keyof typeof hints

/** An error with a code, a sentence and a hint. `fields` are for the log, never for secrets. */
export class Fault extends Error {
  readonly code: FaultCode
  readonly hint: string
  readonly fields: Readonly<Record<string, unknown>>

  constructor(code: FaultCode, sentence: string, fields: Readonly<Record<string, unknown>> = {}, cause?: unknown) {
    super(sentence, cause === undefined ? undefined : { cause })
    this.name = 'Fault'
    this.code = code
    this.hint = hints[code]
    this.fields = fields
  }
}

/** Anything that was thrown, as an Error. */
export function toError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown))
}

/** The deepest sentence of a chain of causes: what really happened. */
export function rootMessage(thrown: unknown): string {
  let error = toError(thrown)
  while (error.cause !== undefined) error = toError(error.cause)
  if (error instanceof AggregateError && error.errors.length > 0) return rootMessage(error.errors[0])
  return error.message || error.name
}
