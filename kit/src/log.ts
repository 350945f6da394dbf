/** JSON lines on stdout: events in the past tense with fields. Secrets in URLs are cut out before they are written. */
import { type Logger, pino } from 'pino'
import { Fault, toError } from './fault.ts'

export type Log = Logger

/** `rtsp://user:secret@host/x` → `rtsp://***@host/x`, `…?password=secret&…` → `…?password=***&…`, wherever they stand in a text. */
export function redact(text: string): string {
  return (
    text
      .replace(/([a-z][a-z0-9+.-]*:\/\/)[^\s/]+@/gi, '$1***@')
      .replace(/([?&](?:user(?:name)?|pass(?:word|wd)?|pwd|token|auth|secret|api_?key)=)[^&\s"'#]*/gi, '$1***')
      // cameras that want it in their path: `/user=admin_password=secret_channel=1_stream=0`
      .replace(/([/_](?:user(?:name)?|pass(?:word|wd)?|pwd)=)(?:(?!_[a-z]+=)[^&/\s"'#])*/gi, '$1***')
  )
}

interface SerialisedError {
  readonly message: string
  readonly code?: string
  readonly hint?: string
  readonly stack?: string
  readonly cause?: SerialisedError
}

function serialiseError(thrown: unknown): SerialisedError {
  const error = toError(thrown)
  const known = error instanceof Fault
  return {
    message: redact(error.message),
    ...(known ? { code: error.code, hint: error.hint, ...error.fields } : {}),
    ...(known || error.stack === undefined ? {} : { stack: redact(error.stack) }),
    ...(error.cause === undefined ? {} : { cause: serialiseError(error.cause) }),
  }
}

export function openLog(name: string, level: string): Log {
  return pino({
    level,
    base: { name },
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label) => ({ level: label }) },
    serializers: { err: serialiseError },
    redact: { paths: ['password', 'secret', 'authorization', '*.password', '*.secret', '*.authorization'], censor: '***' },
  })
}
