// Frames over a Stream, one at a time. Enters: a Stream. Leaves: frames, and at the end the stream itself with the
// bytes after the frames. Always holds: no byte after the requested frame is interpreted, so after the first frame the
// rest can be forwarded raw (the relay must not read it); a frame that is too large or unexpected is rejected by its
// header.
import { encodeFrame, FRAME_HEADER_BYTES, type Frame, FrameDecoder } from '../wire/frame.ts'
import type { Stream } from './types.ts'

type LimitOf = (type: number) => number | undefined

export type FrameStream = {
  readonly stream: Stream
  /**
   * Next frame, or null when the stream ended between frames. FRAME_TYPE, FRAME_TOO_LARGE, FRAME_TRUNCATED, or the
   * error of the stream.
   */
  next(limitOf: LimitOf): Promise<Frame | null>
  write(type: number, payload: Uint8Array): Promise<void>
  /** The stream from the first byte after the last frame. No next() after it. */
  rest(): Stream
  /**
   * performance.now() of the last received bytes, also of a partial frame, so a large frame on a slow link shows that
   * the peer is alive.
   */
  heardAt(): number
  /** performance.now() of the first byte of the incomplete frame; undefined between frames. */
  beganAt(): number | undefined
}

const NOTHING = new Uint8Array(0)

export function createFrameStream(stream: Stream): FrameStream {
  let held: Uint8Array = NOTHING
  let heardAt = performance.now()
  let handedOver = false
  let beganAt: number | undefined

  async function take(bytesMax: number): Promise<Uint8Array | null> {
    while (held.length === 0) {
      const chunk = await stream.read()
      if (chunk === null) return null
      heardAt = performance.now()
      held = chunk
    }
    const part = held.subarray(0, bytesMax)
    held = held.subarray(part.length)
    return part
  }

  return {
    stream,
    async next(limitOf) {
      if (handedOver) throw new Error('next() after rest()')
      const decoder = new FrameDecoder(limitOf)
      const header = new Uint8Array(FRAME_HEADER_BYTES)
      let wanted = FRAME_HEADER_BYTES
      for (let fill = 0; ; ) {
        const part = await take(wanted - fill)
        if (part === null) {
          decoder.end()
          return null
        }
        beganAt ??= performance.now()
        if (fill < FRAME_HEADER_BYTES) header.set(part, fill)
        fill += part.length
        const [frame] = decoder.push(part)
        if (frame) {
          beganAt = undefined
          return frame
        }
        if (fill === FRAME_HEADER_BYTES) wanted += new DataView(header.buffer).getUint32(0)
      }
    },
    write: (type, payload) => stream.write(encodeFrame(type, payload)),
    rest() {
      handedOver = true
      return {
        id: stream.id,
        write: bytes => stream.write(bytes),
        end: () => stream.end(),
        reset: reason => stream.reset(reason),
        async read() {
          if (held.length === 0) return stream.read()
          const first = held
          held = NOTHING
          return first
        },
      }
    },
    heardAt: () => heardAt,
    beganAt: () => beganAt,
  }
}
