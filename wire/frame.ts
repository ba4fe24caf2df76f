// Frames: u32be payload length | u8 type | payload. Enters: chunks of a byte stream, cut anywhere. Leaves: whole frames
// in order. Always holds: a frame too large or of unknown type is refused from its header alone; memory held is 64 KiB
// or twice what has arrived of one payload (never what a header merely announces); the first error is final, for the
// place of the next frame is lost with it.
import { GodwitError } from './errors.ts'
import { frameName } from './types.ts'

export const FRAME_HEADER_BYTES = 5

const LENGTH_MAX = 0xffff_ffff
const FIRST_BUFFER_BYTES = 64 * 1024
const EMPTY = new Uint8Array(0)

export type Frame = { type: number; payload: Uint8Array }

/** Writes a frame header at `offset`: for senders that build header and payload in one buffer. */
export function writeFrameHeader(out: Uint8Array, offset: number, type: number, payloadBytes: number): void {
  if (!Number.isInteger(type) || type < 1 || type > 255) throw new TypeError(`frame type ${type} is not 1..255`)
  if (!Number.isInteger(payloadBytes) || payloadBytes < 0 || payloadBytes > LENGTH_MAX)
    throw new TypeError(`bad frame length ${payloadBytes}`)
  out[offset] = payloadBytes >>> 24
  out[offset + 1] = (payloadBytes >>> 16) & 0xff
  out[offset + 2] = (payloadBytes >>> 8) & 0xff
  out[offset + 3] = payloadBytes & 0xff
  out[offset + 4] = type
}

/** One whole frame. Copies the payload. */
export function encodeFrame(type: number, payload: Uint8Array): Uint8Array {
  const out = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  writeFrameHeader(out, 0, type, payload.length)
  out.set(payload, FRAME_HEADER_BYTES)
  return out
}

/**
 * Incremental decoder. `limitOf(type)` is the largest payload of a type in bytes, or undefined for a type not allowed
 * here (see `allow` in types.ts).
 */
export class FrameDecoder {
  readonly #limitOf: (type: number) => number | undefined
  readonly #header = new Uint8Array(FRAME_HEADER_BYTES)
  #headerFill = 0
  #type = 0
  #length = 0
  #payload: Uint8Array = EMPTY
  #payloadFill = 0
  #failure: GodwitError | undefined

  constructor(limitOf: (type: number) => number | undefined) {
    this.#limitOf = limitOf
  }

  /**
   * All frames completed by this chunk, or FRAME_TYPE, FRAME_TOO_LARGE and none of them. For chunks from a peer use
   * `frames`, which needs less memory.
   */
  push(chunk: Uint8Array): Frame[] {
    return [...this.frames(chunk)]
  }

  /**
   * The frames completed by this chunk, one at a time: a chunk of thousands of empty frames needs memory for one. Read
   * it to its end before the next chunk. A payload that lies completely in `chunk` is a view of it, others are new:
   * copy it if the chunk is reused. Throws FRAME_TYPE or FRAME_TOO_LARGE at the start of the bad frame, and on every
   * later call.
   */
  *frames(chunk: Uint8Array): Generator<Frame, void> {
    if (this.#failure) throw this.#failure
    let at = 0
    while (at < chunk.length || (this.#headerFill === FRAME_HEADER_BYTES && this.#length === 0)) {
      if (this.#headerFill < FRAME_HEADER_BYTES) {
        at = this.#pushHeader(chunk, at)
        continue
      }
      const missing = this.#length - this.#payloadFill
      if (this.#payloadFill === 0 && chunk.length - at >= missing) {
        const frame = { type: this.#type, payload: missing === 0 ? EMPTY : chunk.subarray(at, at + missing) }
        at += missing
        this.#reset()
        yield frame
        continue
      }
      const take = Math.min(missing, chunk.length - at)
      this.#append(chunk.subarray(at, at + take))
      at += take
      if (take === missing) {
        const frame = { type: this.#type, payload: this.#payload.subarray(0, this.#length) }
        this.#reset()
        yield frame
      }
    }
  }

  /** Call at the end of the stream. Throws FRAME_TRUNCATED if a frame is incomplete. */
  end(): void {
    if (this.#failure) throw this.#failure
    if (this.#headerFill === 0) return
    const where =
      this.#headerFill < FRAME_HEADER_BYTES ? 'a frame header' : `${this.#payloadFill} of ${this.#length} bytes of ${frameName(this.#type)}`
    this.#fail(new GodwitError('FRAME_TRUNCATED', `the stream ended within ${where}`))
  }

  /** Received bytes of an incomplete frame: above 0 more bytes must follow. */
  get pendingBytes(): number {
    return this.#headerFill + this.#payloadFill
  }

  #pushHeader(chunk: Uint8Array, at: number): number {
    const take = Math.min(FRAME_HEADER_BYTES - this.#headerFill, chunk.length - at)
    this.#header.set(chunk.subarray(at, at + take), this.#headerFill)
    this.#headerFill += take
    if (this.#headerFill === FRAME_HEADER_BYTES) this.#readHeader()
    return at + take
  }

  #readHeader(): void {
    const [a, b, c, d, type] = this.#header as unknown as [number, number, number, number, number]
    const length = ((a << 24) | (b << 16) | (c << 8) | d) >>> 0
    const limit = this.#limitOf(type)
    if (limit === undefined) this.#fail(new GodwitError('FRAME_TYPE', `a frame of ${frameName(type)} is not expected here`))
    if (length > limit) this.#fail(new GodwitError('FRAME_TOO_LARGE', `${frameName(type)} of ${length} bytes: the limit is ${limit}`))
    this.#type = type
    this.#length = length
  }

  #append(bytes: Uint8Array): void {
    const needed = this.#payloadFill + bytes.length
    if (this.#payload.length < needed) {
      const grown = new Uint8Array(Math.min(this.#length, Math.max(FIRST_BUFFER_BYTES, needed, this.#payload.length * 2)))
      grown.set(this.#payload.subarray(0, this.#payloadFill))
      this.#payload = grown
    }
    this.#payload.set(bytes, this.#payloadFill)
    this.#payloadFill = needed
  }

  #reset(): void {
    this.#headerFill = 0
    this.#payloadFill = 0
    this.#payload = EMPTY
  }

  #fail(error: GodwitError): never {
    this.#failure = error
    this.#payload = EMPTY
    throw error
  }
}
