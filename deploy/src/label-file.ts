/** Label and zone files: read with every problem and its line, sent to the labels API in pieces. */
import { readFileSync } from 'node:fs'
import { Fault } from '@frameloop/kit/fault'
import { isName } from '@frameloop/schemas/ids'
import type { ZoneShape } from '@frameloop/stream-processors/features/prepare'

export interface LabelLine {
  readonly line: number
  readonly zone: string
  readonly label: string
  readonly frameId?: string
  readonly mediaOffsetMs?: number
  readonly frameAt?: string
}

const keys = ['media_offset_ms', 'frame_id', 'frame_at'] as const

/** CSV with the columns `media_offset_ms` or `frame_id` or `frame_at`, then `zone`, `label`. Throws `LABELS_INVALID` naming the lines. */
export function parseLabels(text: string): LabelLine[] {
  const lines = text.split(/\r?\n/)
  const columns = (lines[0] ?? '').split(',').map((name) => name.trim())
  const key = keys.find((name) => columns.includes(name))
  if (!key || !columns.includes('zone') || !columns.includes('label')) {
    throw new Fault('LABELS_INVALID', `The first line must name the columns media_offset_ms (or frame_id, or frame_at), zone and label; it says "${lines[0] ?? ''}"`)
  }
  const problems: string[] = []
  const labels: LabelLine[] = []
  lines.slice(1).forEach((raw, at) => {
    if (raw.trim() === '') return
    const line = at + 2
    const cells = raw.split(',').map((cell) => cell.trim())
    const cell = (name: string): string => cells[columns.indexOf(name)] ?? ''
    const value = cell(key)
    const zone = cell('zone')
    const label = cell('label')
    if (!isName(zone) || !isName(label)) problems.push(`line ${line}: zone and label must be names, "${raw}"`)
    else if (key === 'media_offset_ms') {
      if (value === '' || !Number.isFinite(Number(value)) || Number(value) < 0) problems.push(`line ${line}: media_offset_ms must be a number from 0, it is "${value}"`)
      else labels.push({ line, zone, label, mediaOffsetMs: Number(value) })
    } else labels.push({ line, zone, label, ...(key === 'frame_id' ? { frameId: value } : { frameAt: value }) })
  })
  if (problems.length > 0) throw new Fault('LABELS_INVALID', `${problems.length} lines are wrong:\n  ${problems.slice(0, 20).join('\n  ')}`)
  if (labels.length === 0) throw new Fault('LABELS_INVALID', 'The file holds no label')
  return labels
}

/** Throws `ZONES_INVALID` with every problem. */
export function parseZones(text: string): ZoneShape[] {
  let parsed: unknown
  try {
    parsed = JSON.parse(text)
  } catch (thrown) {
    throw new Fault('ZONES_INVALID', `The zone file is no JSON: ${(thrown as Error).message}`, {}, thrown)
  }
  if (!Array.isArray(parsed) || parsed.length === 0) throw new Fault('ZONES_INVALID', 'The zone file holds no list of zones')
  const problems: string[] = []
  const names = new Set<unknown>()
  const zones = (parsed as (Partial<ZoneShape> | null)[]).map((given, at): ZoneShape => {
    const entry = given ?? {}
    if (names.has(entry.zone)) problems.push(`zone ${entry.zone ?? at + 1} stands there twice`)
    names.add(entry.zone)
    if (typeof entry.zone !== 'string' || !isName(entry.zone)) problems.push(`zone ${at + 1}: "zone" must be a name`)
    for (const field of ['x', 'y', 'width', 'height', 'pictureWidth', 'pictureHeight'] as const) {
      const value = entry[field]
      if (!Number.isInteger(value) || (value ?? -1) < (field === 'x' || field === 'y' ? 0 : 1))
        problems.push(`zone ${entry.zone ?? at + 1}: "${field}" must be a whole number of pixels, it is ${JSON.stringify(value)}`)
    }
    if ((entry.x ?? 0) + (entry.width ?? 0) > (entry.pictureWidth ?? 0) || (entry.y ?? 0) + (entry.height ?? 0) > (entry.pictureHeight ?? 0))
      problems.push(`zone ${entry.zone ?? at + 1} reaches out of its picture`)
    return entry as ZoneShape
  })
  if (problems.length > 0) throw new Fault('ZONES_INVALID', `The zone file is wrong:\n  ${problems.join('\n  ')}`)
  return zones
}

/** A file that a person named, or `SOURCE_UNREADABLE`. */
export function readNamed(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (thrown) {
    throw new Fault('SOURCE_UNREADABLE', `The file ${path} cannot be read: ${(thrown as Error).message}`, { path }, thrown)
  }
}

async function send(url: string, method: string, body: unknown): Promise<unknown> {
  const response = await fetch(url, { method, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body), signal: AbortSignal.timeout(60_000) })
  const answer = (await response.json().catch(() => ({}))) as { detail?: string }
  if (!response.ok) throw new Fault('LABELS_INVALID', answer.detail ?? `The labels API answered ${response.status}`)
  return answer
}

export async function putZoneFile(labelsUrl: string, cameraId: string, task: string, zones: readonly ZoneShape[]): Promise<void> {
  await send(`${labelsUrl}/v1/cameras/${encodeURIComponent(cameraId)}/tasks/${encodeURIComponent(task)}/zones`, 'PUT', { zones })
}

export interface Imported {
  readonly stored: number
  readonly unchanged: number
  readonly superseded: number
  readonly rejected: readonly { readonly line: number; readonly message: string }[]
}

export async function importLabels(
  labelsUrl: string,
  labels: readonly LabelLine[],
  where: { readonly cameraId: string; readonly task: string; readonly source: string; readonly asOf?: string },
  onProgress: (done: number) => void,
): Promise<Imported> {
  let total: Imported = { stored: 0, unchanged: 0, superseded: 0, rejected: [] }
  for (let from = 0; from < labels.length; from += 1_000) {
    const part = labels.slice(from, from + 1_000)
    const answer = (await send(`${labelsUrl}/v1/labels`, 'POST', {
      source: where.source.slice(-200),
      ...(where.asOf ? { asOf: where.asOf } : {}),
      labels: part.map(({ line: _, ...label }) => ({ ...label, cameraId: where.cameraId, task: where.task })),
    })) as { stored: number; unchanged: number; superseded: number; rejected: { index: number; message: string }[] }
    total = {
      stored: total.stored + answer.stored,
      unchanged: total.unchanged + answer.unchanged,
      superseded: total.superseded + answer.superseded,
      rejected: [...total.rejected, ...answer.rejected.map(({ index, message }) => ({ line: part[index]?.line ?? 0, message }))],
    }
    onProgress(Math.min(labels.length, from + part.length))
  }
  return total
}
