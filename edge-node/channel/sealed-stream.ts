// A relay stream seen from the nodes: inner frames in, sealed fixed-size records out, and back.
// Always holds: frames are one byte stream cut into full records, so a record's size tells nothing of a single batch;
// only a flush pads. The first RECORD carries the secretstream header and nothing else. A stream is whole only after
// its final record; what follows it is an attack.
import { createCutter } from '../../crypto/channel/cutter.ts'
import { createOpener, createSealer, type Opener, type RecordContext } from '../../crypto/channel/record.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { encodeFrame, FRAME_HEADER_BYTES, type Frame, FrameDecoder, writeFrameHeader } from '../../wire/frame.ts'
import type { TrafficClass } from '../../wire/roles.ts'
import { allow, FRAME, type FrameName } from '../../wire/types.ts'
import type { Gate } from '../rate/gate.ts'

const NOTHING = new Uint8Array(0)

export type SealedWriter = {
  /**
   * Resolves when the frame is in records or in the buffer of the next one, and the path has room. Calls keep their
   * order.
   */
  send(type: number, payload: Uint8Array): Promise<void>
  /** Pads and sends what waits in the buffer. */
  flush(): Promise<void>
  /** Flushes, marks the end (TAG_FINAL) and half-closes. */
  finish(): Promise<void>
  /** Records so far and their running digest: the stream's line in the manifest. */
  readonly records: number
  digest(): Uint8Array
  readonly wireBytes: number
}

type WriterOptions = { stream: Stream; key: Uint8Array; context: RecordContext; gate?: Gate; traffic?: TrafficClass }

export function createSealedWriter({ stream, key, context, gate, traffic }: WriterOptions): SealedWriter {
  const sealer = createSealer({ key, context })
  const cutter = createCutter(sealer)
  const header = new Uint8Array(FRAME_HEADER_BYTES)
  let begun = false
  let finished = false
  let wireBytes = 0
  let queue: Promise<void> = Promise.resolve()

  const put = async (frames: Uint8Array[]) => {
    if (frames.length > 0 && !begun) {
      begun = true
      await put([encodeFrame(FRAME.RECORD, sealer.header)])
    }
    for (const frame of frames) {
      wireBytes += frame.length
      await gate?.pass(frame.length, traffic)
      await stream.write(frame)
    }
  }
  const inOrder = (work: () => Promise<void>): Promise<void> => {
    const done = queue.then(work)
    queue = done.catch(() => {})
    return done
  }
  return {
    send: (type, payload) =>
      inOrder(async () => {
        if (finished) throw new Error('send after finish')
        writeFrameHeader(header, 0, type, payload.length)
        const isSmall = gate?.flight.isThin === true
        await put(cutter.write(header, isSmall))
        await put(cutter.write(payload, isSmall))
      }),
    flush: () => inOrder(() => put(cutter.flush())),
    finish: () =>
      inOrder(async () => {
        if (finished) return
        finished = true
        await put(cutter.end())
        await stream.end()
      }),
    get records() {
      return sealer.records
    },
    digest: () => sealer.digest(),
    get wireBytes() {
      return wireBytes
    },
  }
}

export type SealedReader = {
  /**
   * The frames until the final record. Throws DECRYPT_FAILED, FRAME_*, STREAM_RESET or CONNECTION_LOST; the stream is
   * reset then.
   */
  frames(): AsyncGenerator<Frame, void>
  readonly records: number
  digest(): Uint8Array
}

type ReaderOptions = {
  stream: Stream
  key: Uint8Array
  context: RecordContext
  /** The inner frames that may come on this stream. */
  allowed: FrameName[]
  /** Told of every wire byte of records, as the writer counts them (for acknowledgements). */
  onReceived?: (wireBytes: number) => void
  /** Told of what ends the stream before its final record, before frames() throws it. */
  onError?: (error: GodwitError) => void
}

export function createSealedReader({ stream, key, context, allowed, onReceived, onError }: ReaderOptions): SealedReader {
  const outer = new FrameDecoder(allow('RECORD'))
  const inner = new FrameDecoder(allow(...allowed))
  let opener: Opener | undefined
  let final = false

  const open = (payload: Uint8Array): Uint8Array => {
    if (final) throw new GodwitError('DECRYPT_FAILED', 'bytes after the final record')
    if (!opener) {
      opener = createOpener({ key, context, header: payload })
      return NOTHING
    }
    const record = opener.open(payload, { inPlace: true })
    final = record.final
    return record.data
  }
  async function* read(): AsyncGenerator<Frame, void> {
    for (;;) {
      const chunk = await stream.read()
      if (chunk === null) break
      for (const record of outer.frames(chunk)) {
        const data = open(record.payload)
        onReceived?.(record.payload.length + FRAME_HEADER_BYTES)
        yield* inner.frames(data)
        if (final) inner.end()
      }
    }
    outer.end()
    if (!final) throw new GodwitError('FRAME_TRUNCATED', `stream ${context.index} ended without its final record`)
  }
  return {
    async *frames() {
      try {
        yield* read()
      } catch (error) {
        const coded = toGodwitError(error)
        stream.reset(coded.code)
        onError?.(coded)
        throw coded
      }
    },
    get records() {
      return opener?.records ?? 0
    },
    digest: () => opener?.digest() ?? new Uint8Array(32),
  }
}
