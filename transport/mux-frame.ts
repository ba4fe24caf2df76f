// Frames of the muxer: the header of yamux (https://github.com/hashicorp/yamux/blob/master/spec.md), 12 bytes, big
// endian:
//   version u8 = 0 | type u8 | flags u16 | stream id u32 | length u32 (data bytes, credit, ping or go-away code)
// Enters: chunks of any size. Leaves: headers, and the data after them in pieces as received. A frame is never
// collected as a whole: the peer states its length, and the window is checked before the first byte is stored.

const HEADER_BYTES = 12
export const TYPE = { data: 0, window: 1, ping: 2, goAway: 3 } as const
export const FLAG = { syn: 1, ack: 2, fin: 4, rst: 8 } as const
/** The send window of a stream before any credit. */
export const INITIAL_WINDOW_BYTES = 256 * 1024

export type Header = { type: number; flags: number; id: number; length: number }

/** A header and its data in one buffer, for one write to the lane. */
export function encodeMuxFrame(type: number, flags: number, id: number, length: number, data?: Uint8Array): Buffer {
  const out = Buffer.allocUnsafe(HEADER_BYTES + (data?.length ?? 0))
  out[0] = 0
  out[1] = type
  out.writeUInt16BE(flags, 2)
  out.writeUInt32BE(id, 4)
  out.writeUInt32BE(length, 8)
  if (data) out.set(data, HEADER_BYTES)
  return out
}

type MuxEvents = {
  /** For a data frame, `data` events follow, with `header.length` bytes in total. */
  header(header: Header): void
  data(piece: Uint8Array): void
}

/** push(chunk) -> events. Throws an Error for an invalid header; the decoder is unusable after that. */
export function createMuxDecoder(events: MuxEvents): { push(chunk: Uint8Array): void } {
  const partial = Buffer.alloc(HEADER_BYTES)
  let have = 0
  let dataLeft = 0

  const decode = (bytes: Buffer, at: number) => {
    const header: Header = {
      type: bytes[at + 1]!,
      flags: bytes.readUInt16BE(at + 2),
      id: bytes.readUInt32BE(at + 4),
      length: bytes.readUInt32BE(at + 8),
    }
    if (bytes[at] !== 0 || header.type > 3) throw new Error(`muxer frame of version ${bytes[at]}, type ${header.type}`)
    dataLeft = header.type === TYPE.data ? header.length : 0
    events.header(header)
  }
  return {
    push(chunk) {
      const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.length)
      for (let at = 0; at < bytes.length; ) {
        if (dataLeft > 0) {
          const piece = bytes.subarray(at, at + dataLeft)
          dataLeft -= piece.length
          at += piece.length
          events.data(piece)
        } else if (have === 0 && bytes.length - at >= HEADER_BYTES) {
          decode(bytes, at)
          at += HEADER_BYTES
        } else {
          const copied = bytes.copy(partial, have, at, at + HEADER_BYTES - have)
          have += copied
          at += copied
          if (have === HEADER_BYTES) {
            have = 0
            decode(partial, 0)
          }
        }
      }
    },
  }
}
