/** What a server refuses, as an error. */
import type { Problem } from './messages.ts'

export class FrameloopError extends Error {
  readonly code: string
  /** The next step. */
  readonly hint: string
  /** Of HTTP; 0 where it came over a WebSocket. */
  readonly status: number

  constructor({ code = 'UNKNOWN', detail = 'The server refused without a reason', hint = '', status = 0 }: Partial<Problem>) {
    super(hint ? `${detail} (${hint})` : detail)
    this.name = 'FrameloopError'
    this.code = code
    this.hint = hint
    this.status = status
  }
}

/** The body of an answer. Throws `FrameloopError` when it is no success. */
export async function bodyOf<Body>(response: Response): Promise<Body> {
  if (response.ok) return (await response.json()) as Body
  const problem = (await response.json().catch(() => ({ detail: `The server answered ${response.status}` }))) as Partial<Problem>
  throw new FrameloopError({ ...problem, status: response.status })
}
