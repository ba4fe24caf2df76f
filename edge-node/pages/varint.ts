// Variable-length numbers of the lists in a batch (batch.ts, patch.ts). Pure.
// Enters and leaves: little-endian base 128, at most 8 bytes, values below 2^53. Always holds: the shortest form and no
// other; any other input is FRAME_MALFORMED.
import { GodwitError } from '../../wire/errors.ts'

/** Longest varint: 8 bytes, values below 2^53. */
export const VARINT_BYTES_MAX = 8

export const malformed = (what: string): GodwitError => new GodwitError('FRAME_MALFORMED', `batch: ${what}`)

/** Doubles, not bit operations: addresses have 48 bits. */
export const zigzag = (value: number): number => (value >= 0 ? value * 2 : -value * 2 - 1)

export function writeVarint(out: Uint8Array, at: number, value: number): number {
  while (value >= 128) {
    out[at++] = (value % 128) | 128
    value = Math.floor(value / 128)
  }
  out[at++] = value
  return at
}

export class VarintReader {
  readonly bytes: Uint8Array
  at: number

  constructor(bytes: Uint8Array, at: number) {
    this.bytes = bytes
    this.at = at
  }

  unsigned(): number {
    let value = 0
    let scale = 1
    for (let i = 0; i < VARINT_BYTES_MAX; i++) {
      const byte = this.bytes[this.at]
      if (byte === undefined) throw malformed('ends within a list')
      this.at++
      value += (byte & 127) * scale
      if (byte < 128) {
        if (byte === 0 && i > 0) throw malformed('a varint that is not the shortest')
        if (value > Number.MAX_SAFE_INTEGER) break
        return value
      }
      scale *= 128
    }
    throw malformed('a varint that is too large')
  }

  /** So many bytes as they are: a view. */
  take(count: number): Uint8Array {
    if (this.at + count > this.bytes.length) throw malformed('ends within a list')
    this.at += count
    return this.bytes.subarray(this.at - count, this.at)
  }

  signed(): number {
    const value = this.unsigned()
    return value % 2 === 0 ? value / 2 : -(value + 1) / 2
  }
}
