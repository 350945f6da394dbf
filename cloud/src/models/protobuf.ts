/** The part of the Protocol Buffers wire format that writing needs (protobuf.dev, "Encoding"): varints, floats, and what has a length. */

function varint(value: number | bigint): Buffer {
  let rest = BigInt.asUintN(64, BigInt(value))
  const bytes: number[] = []
  do {
    const low = Number(rest & 0x7fn)
    rest >>= 7n
    bytes.push(rest === 0n ? low : low | 0x80)
  } while (rest !== 0n)
  return Buffer.from(bytes)
}

const tag = (field: number, type: 0 | 2 | 5): Buffer => varint((field << 3) | type)

export const int = (field: number, value: number): Buffer => Buffer.concat([tag(field, 0), varint(value)])

export const bytes = (field: number, value: Uint8Array): Buffer => Buffer.concat([tag(field, 2), varint(value.length), value])

export const text = (field: number, value: string): Buffer => bytes(field, Buffer.from(value))

export const message = (field: number, ...parts: readonly Uint8Array[]): Buffer => bytes(field, Buffer.concat(parts))

export const packedInts = (field: number, values: readonly number[]): Buffer => bytes(field, Buffer.concat(values.map(varint)))

export function float(field: number, value: number): Buffer {
  const number = Buffer.alloc(4)
  number.writeFloatLE(value)
  return Buffer.concat([tag(field, 5), number])
}
