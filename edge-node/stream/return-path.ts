// QEMU's return path: what the target's QEMU tells the source's while it loads (u16 type, u16 length, payload;
// big-endian).
// Enters: its bytes, cut anywhere. Leaves: whole messages. Always holds: a type that is not known or a length that its
// type cannot have is QEMU_STREAM before any payload is kept, so at most 268 bytes are carried over. SHUT(0) is the
// only proof that the target has loaded everything.
import { GodwitError } from '../../wire/errors.ts'
import { be16, be32, concat, RETURN_PATH, readU16, readU32 } from './layout.ts'

export { RETURN_PATH } from './layout.ts'

type ReturnPathEvents = {
  /** One message; `payload` is the receiver's to keep. */
  message(type: number, payload: Uint8Array): void
  /**
   * What follows a RECV_BITMAP message: the bitmap is outside the message's length (post-copy recovery only), so all
   * bytes after it come here, valid during the callback only. Without this function a RECV_BITMAP is QEMU_STREAM.
   */
  rest?(bytes: Uint8Array): void
}

type ReturnPathParser = {
  /** Takes the next bytes. Throws QEMU_STREAM; the first error is final. */
  push(chunk: Uint8Array): void
  /** The path is closed: QEMU_STREAM when it ended within a message. */
  end(): void
}

/** Shortest and longest payload of each type, in bytes. */
const LENGTHS: ReadonlyMap<number, readonly [number, number]> = new Map([
  [RETURN_PATH.shut, [4, 4]],
  [RETURN_PATH.pong, [4, 4]],
  [RETURN_PATH.reqPagesId, [8 + 4 + 1, 8 + 4 + 1 + 255]],
  [RETURN_PATH.reqPages, [12, 12]],
  [RETURN_PATH.recvBitmap, [1, 1 + 255]],
  [RETURN_PATH.resumeAck, [4, 4]],
  [RETURN_PATH.switchoverAck, [0, 0]],
])
const HEADER_BYTES = 4

export function createReturnPathParser(events: ReturnPathEvents): ReturnPathParser {
  let carry: Uint8Array = new Uint8Array(0)
  let raw = false
  let error: unknown

  const parse = (bytes: Uint8Array): void => {
    let at = 0
    while (!raw && bytes.length - at >= HEADER_BYTES) {
      const type = readU16(bytes, at)
      const length = checkLength(type, readU16(bytes, at + 2))
      if (type === RETURN_PATH.recvBitmap && events.rest === undefined) throw wrong('a received-pages bitmap outside a recovery')
      if (bytes.length - at < HEADER_BYTES + length) break
      const payload = bytes.slice(at + HEADER_BYTES, at + HEADER_BYTES + length)
      at += HEADER_BYTES + length
      raw = type === RETURN_PATH.recvBitmap
      events.message(type, payload)
    }
    if (raw && at < bytes.length) events.rest?.(bytes.subarray(at))
    carry = raw ? new Uint8Array(0) : bytes.slice(at)
  }

  return {
    push(chunk) {
      if (error !== undefined) throw error
      try {
        parse(concat([carry, chunk]))
      } catch (reason) {
        error = reason
        throw reason
      }
    },
    end() {
      if (error !== undefined) throw error
      if (carry.length > 0) throw wrong('it ended within a message')
    },
  }
}

/** The only good last message: 0. Anything else makes the source's QEMU fail the migration and resume its guest. */
export const encodeShut = (value: number): Uint8Array => encodeReturnPath(RETURN_PATH.shut, be32(value))

/** The answer to the PING of the same value. */
export const encodePong = (value: number): Uint8Array => encodeReturnPath(RETURN_PATH.pong, be32(value))

/** Any message; QEMU_STREAM when the type is not known or cannot have such a payload. */
export function encodeReturnPath(type: number, payload: Uint8Array): Uint8Array {
  checkLength(type, payload.length)
  return concat([be16(type), be16(payload.length), payload])
}

/** The number in a SHUT, PONG or RESUME_ACK. */
export function decodeValue(payload: Uint8Array): number {
  if (payload.length !== 4) throw wrong(`a number of ${payload.length} bytes`)
  return readU32(payload, 0)
}

function checkLength(type: number, length: number): number {
  const range = LENGTHS.get(type)
  if (range === undefined) throw wrong(`a message of type ${type}`)
  if (length < range[0] || length > range[1]) throw wrong(`a message of type ${type} with ${length} bytes`)
  return length
}

const wrong = (what: string): GodwitError => new GodwitError('QEMU_STREAM', `QEMU's return path: ${what}`)
