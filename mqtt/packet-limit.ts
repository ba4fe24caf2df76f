// Limits the size of MQTT packets before anything is buffered: aedes has no limit, and a packet may announce 256 MiB.
// Enters: a client's bytes, in pieces of any size. Leaves: the same bytes, or FRAME_TOO_LARGE at the header that
// announces too much. Format: MQTT 3.1.1, section 2.2: one byte of type and flags, then the remaining length, base 128,
// little-endian, at most 4 bytes.
import { Transform, type TransformCallback } from 'node:stream'
import { GodwitError } from '../wire/errors.ts'

const LENGTH_BYTES_MAX = 4

/** Follows the packets of one direction of one connection. Pure. */
export class PacketLimit {
  readonly #bytesMax: number
  /** Missing bytes of the current packet; -1: within the remaining length; -2: at the first byte of a packet. */
  #left = -2
  #length = 0
  #lengthBytes = 0

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** Throws FRAME_TOO_LARGE or FRAME_MALFORMED; the first error is final. */
  push(chunk: Uint8Array): void {
    for (let at = 0; at < chunk.length; ) {
      if (this.#left > 0) {
        const taken = Math.min(this.#left, chunk.length - at)
        this.#left -= taken
        at += taken
        if (this.#left === 0) this.#left = -2
      } else if (this.#left === -2) {
        this.#left = -1
        this.#length = 0
        this.#lengthBytes = 0
        at += 1
      } else this.#takeLength(chunk[at++]!)
    }
  }

  #takeLength(byte: number): void {
    if (this.#lengthBytes === LENGTH_BYTES_MAX) throw new GodwitError('FRAME_MALFORMED', 'an MQTT packet with an invalid length')
    this.#length += (byte & 0x7f) * 128 ** this.#lengthBytes
    this.#lengthBytes += 1
    if (this.#length > this.#bytesMax) throw new GodwitError('FRAME_TOO_LARGE', `an MQTT packet larger than ${this.#bytesMax} bytes`)
    if ((byte & 0x80) === 0) this.#left = this.#length === 0 ? -2 : this.#length
  }
}

export class PacketLimitStream extends Transform {
  readonly #limit: PacketLimit

  constructor(bytesMax: number) {
    super()
    this.#limit = new PacketLimit(bytesMax)
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    try {
      this.#limit.push(chunk)
      done(null, chunk)
    } catch (error) {
      done(error as Error)
    }
  }
}
