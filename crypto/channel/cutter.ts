// Cuts a byte stream into full records, so that the sizes of writes (compressed batches) are not visible on the wire.
// Enters: bytes of any length. Leaves: RECORD frames ready to be sent. Each byte is copied once, into the frame in
// which it is sealed.
import { FRAME_BUFFER_BYTES, FRAME_DATA_OFFSET, RECORD_DATA_BYTES_MAX, type Sealer, SMALL_RECORD_DATA_BYTES } from './record.ts'

type Cutter = {
  /**
   * Frames completed by these bytes; the rest is kept for the next call, flush() or end(). `isSmall`: records of 16 KiB
   * are full, not of 64.
   */
  write(bytes: Uint8Array, isSmall?: boolean): Uint8Array[]
  /** The kept bytes as one smaller frame; none if no bytes are kept. */
  flush(): Uint8Array[]
  /** The kept bytes (possibly none) as the final record. */
  end(): Uint8Array[]
  /** Kept bytes. */
  readonly pendingBytes: number
}

export function createCutter(sealer: Sealer): Cutter {
  let buffer: Uint8Array | undefined
  let fill = 0
  const room = () => {
    buffer ??= new Uint8Array(Buffer.allocUnsafeSlow(FRAME_BUFFER_BYTES).buffer)
    return buffer
  }
  const seal = (final: boolean) => {
    const frame = sealer.sealFrameInPlace(room(), fill, { final })
    // The caller now owns the frame.
    buffer = undefined
    fill = 0
    return frame
  }
  return {
    write(bytes, isSmall = false) {
      const frames: Uint8Array[] = []
      const fullBytes = isSmall ? SMALL_RECORD_DATA_BYTES : RECORD_DATA_BYTES_MAX
      if (fill >= fullBytes) frames.push(seal(false))
      for (let at = 0; at < bytes.length; ) {
        const take = Math.min(bytes.length - at, fullBytes - fill)
        room().set(bytes.subarray(at, at + take), FRAME_DATA_OFFSET + fill)
        fill += take
        at += take
        if (fill === fullBytes) frames.push(seal(false))
      }
      return frames
    },
    flush: () => (fill > 0 ? [seal(false)] : []),
    end: () => [seal(true)],
    get pendingBytes() {
      return fill
    },
  }
}
