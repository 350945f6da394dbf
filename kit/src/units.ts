/**
 * Numbers that carry their unit. A bare `number` is a count or a ratio; anything with a unit is branded,
 * so that milliseconds cannot be handed to something that wants bytes.
 */
declare const unit: unique symbol

/** A duration in milliseconds. */
export type Ms = number & { readonly [unit]?: 'ms' }
/** A point in time: milliseconds since 1970-01-01T00:00:00Z. */
export type EpochMs = number & { readonly [unit]?: 'epoch-ms' }
/** A duration or media position in microseconds. */
export type Us = number & { readonly [unit]?: 'us' }
/** A size in bytes. */
export type Bytes = number & { readonly [unit]?: 'bytes' }

/** `1536000` → `1.5 MB`: for people; decimal units, as disks and networks are sold. */
export function showBytes(bytes: Bytes): string {
  if (bytes < 1000) return `${bytes} B`
  const units = ['kB', 'MB', 'GB', 'TB']
  let value: number = bytes
  let at = -1
  // what would be rounded up to a thousand is one of the next
  while (value >= 999.5 && at < units.length - 1) {
    value /= 1000
    at += 1
  }
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${units[at]}`
}

/** `92400` → `1 min 32 s`, `93600000` → `1 d 2 h`: for people. */
export function showMs(ms: Ms): string {
  if (ms < 999.5) return `${Math.round(ms)} ms`
  if (ms < 9_950) return `${(ms / 1000).toFixed(1)} s`
  const seconds = Math.round(ms / 1000)
  if (seconds < 60) return `${seconds} s`
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`
  const minutes = Math.round(seconds / 60)
  return minutes < 1_440 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1_440)} d ${Math.floor((minutes % 1_440) / 60)} h`
}
