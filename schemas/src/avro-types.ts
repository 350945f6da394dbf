/** How Avro's bytes become our values where avsc's own way is too slow or too long: digests as bytes, short texts from memory. */
import avro from 'avsc'

/** What avsc reads from. Past its end is noticed by whoever asked for the record. */
interface Tap {
  readonly buf: Buffer
  pos: number
  readLong(): number
}

/** Takes a length-prefixed value; returns where it begins, or -1 when it is not all there. */
function skipValue(tap: Tap): number {
  const length = tap.readLong()
  const from = tap.pos
  // a length below zero would read again what was read
  tap.pos = length < 0 ? tap.buf.length + 1 : from + length
  return tap.pos > tap.buf.length ? -1 : from
}

const digestOf = (buf: Buffer, from = 0, to = buf.length): string => buf.toString(to - from === 32 ? 'hex' : 'latin1', from, to)

/** A SHA-256: 64 hex digits for us, 32 bytes on the wire. What is none is kept as it is, for whoever must say that it is wrong. */
class Sha256 extends avro.types.LogicalType {
  override _fromValue(bytes: Buffer): string {
    return digestOf(bytes)
  }

  /** Without a buffer in between, which would cost as much as half of all other fields. */
  _read(tap: Tap): string {
    const from = skipValue(tap)
    return from < 0 ? '' : digestOf(tap.buf, from, tap.pos)
  }

  override _toValue(text: unknown): Buffer | undefined {
    if (typeof text !== 'string') return undefined
    const bytes = Buffer.from(text, 'hex')
    if (bytes.length === 32 && text.length === 64) return bytes
    return text.length === 32 ? undefined : Buffer.from(text, 'latin1')
  }

  /** Records from before 0.2 hold the digits. */
  override _resolve(type: avro.Type): ((value: unknown) => unknown) | undefined {
    if (type instanceof Sha256) return (value) => value
    return type.typeName === 'string' || type.typeName === 'bytes' ? (value) => this._fromValue(Buffer.from(value as string)) : undefined
  }
}

/** Texts that were read, by a hash of their bytes. */
const texts: string[] = new Array(2_048).fill('')
/** Longer ones are mostly ids and keys, which never come again. */
const longest = 32

/** A text from UTF-8. Short ones are looked up: most texts of a record are the same in the next one (camera, lane, bucket, content type). */
export function textOf(buf: Uint8Array & Pick<Buffer, 'toString'>, from: number, to: number): string {
  const length = to - from
  if (length > longest) return buf.toString('utf8', from, to)
  let hash = length
  for (let at = from; at < to; at += 1) hash = (Math.imul(hash, 31) + (buf[at] as number)) | 0
  const slot = (hash ^ (hash >>> 11)) & (texts.length - 1)
  const known = texts[slot] as string
  // what lies there has as many characters as it had bytes: it is ASCII
  if (known.length === length) {
    let at = 0
    while (at < length && known.charCodeAt(at) === buf[from + at]) at += 1
    if (at === length) return known
  }
  const text = buf.toString('utf8', from, to)
  if (text.length === length) texts[slot] = text
  return text
}

class Text extends avro.types.StringType {
  _read(tap: Tap): string {
    const from = skipValue(tap)
    return from < 0 ? '' : textOf(tap.buf, from, tap.pos)
  }
}
const text = new Text()

/** Where they lie: a copy of a frame's pixels costs more than the rest of its record. */
class Bytes extends avro.types.BytesType {
  _read(tap: Tap): Buffer {
    const from = skipValue(tap)
    return from < 0 ? tap.buf.subarray(0, 0) : tap.buf.subarray(from, tap.pos)
  }
}
const bytes = new Bytes()
const ownTypes: Readonly<Record<string, avro.Type>> = { string: text, bytes }

/** An array says how many items follow; each has a byte at least, so more than there are bytes are none, whoever says so. */
class Items extends avro.types.ArrayType {
  _read(tap: Tap): unknown[] {
    const { itemsType } = this as unknown as { readonly itemsType: { _read(from: Tap): unknown } }
    const items: unknown[] = []
    for (let count = tap.readLong(); count !== 0; count = tap.readLong()) {
      // a count below zero is followed by the size of the block
      if (count < 0) tap.readLong()
      const left = Math.abs(count)
      if (left > tap.buf.length - tap.pos) throw new RangeError(`an array of ${left} items is longer than its record`)
      for (let at = 0; at < left; at += 1) items.push(itemsType._read(tap))
    }
    return items
  }
}

/** The type of a schema. Throws when it is none. */
export function parseSchema(schema: string): avro.Type {
  return avro.Type.forSchema(JSON.parse(schema) as avro.Schema, {
    // a fresh registry per schema: the nested records have the same names in several of them
    registry: {},
    wrapUnions: false,
    logicalTypes: { sha256: Sha256 },
    typeHook: (of, options) => {
      if (typeof of === 'string') return ownTypes[of]
      return (of as { readonly type?: unknown }).type === 'array' ? new Items(of as ConstructorParameters<typeof avro.types.ArrayType>[0], options) : undefined
    },
  })
}
