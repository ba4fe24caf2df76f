// wire/frame.ts and transport/frames.ts: frames from bytes cut anywhere. Decoding as a whole, in pieces and one frame
// at a time must give the same result.
import { createFrameStream } from '../../transport/frames.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { encodeFrame, FRAME_HEADER_BYTES, type Frame, FrameDecoder, writeFrameHeader } from '../../wire/frame.ts'
import { allow, FRAME, type FrameName } from '../../wire/types.ts'
import { scriptedStream } from '../streams.ts'
import { attempt, attemptAsync, demand, pieces, sameBytes, type Target } from '../target.ts'

const LIMITS = allow(...(Object.keys(FRAME) as FrameName[]))
const header = (length: number, type: number) => Uint8Array.of(length >>> 24, length >>> 16, length >>> 8, length, type)

/**
 * The decoded frames, encoded again into one buffer: the target keeps no frame, so the measured memory is that of the
 * decoder.
 */
type Decoded = { bytes: Uint8Array; count: number; error: GodwitError | undefined }

function collector(input: Uint8Array) {
  const out = new Uint8Array(input.length)
  let [length, count] = [0, 0]
  return {
    add({ type, payload }: Frame) {
      demand(length + FRAME_HEADER_BYTES + payload.length <= out.length, 'more came out than went in')
      writeFrameHeader(out, length, type, payload.length)
      out.set(payload, length + FRAME_HEADER_BYTES)
      length += FRAME_HEADER_BYTES + payload.length
      count += 1
    },
    result: (error: GodwitError | undefined): Decoded => ({ bytes: out.subarray(0, length), count, error }),
  }
}

function decode(input: Uint8Array, chunks: readonly Uint8Array[], how: 'push' | 'frames'): Decoded {
  const decoder = new FrameDecoder(LIMITS)
  const out = collector(input)
  const { error } = attempt(() => {
    for (const chunk of chunks) for (const frame of decoder[how](chunk)) out.add(frame)
    decoder.end()
  })
  if (error) demand(attempt(() => decoder.push(header(0, FRAME.PING))).error === error, 'the first error is not final')
  return out.result(error)
}

async function decodeOneByOne(input: Uint8Array, chunks: readonly Uint8Array[]): Promise<Decoded> {
  const stream = createFrameStream(scriptedStream(chunks))
  const out = collector(input)
  const { error } = await attemptAsync(async () => {
    for (let frame = await stream.next(LIMITS); frame; frame = await stream.next(LIMITS)) out.add(frame)
  })
  return out.result(error)
}

export const frames: Target = {
  name: 'frames',
  what: 'wire/frame.ts, transport/frames.ts: frames of a byte stream',
  codes: ['FRAME_TYPE', 'FRAME_TOO_LARGE', 'FRAME_TRUNCATED'],
  testRuns: 6000,
  words: [header(0, 10), header(1, 64), header(65536, 1), header(0x20_0000, 64), header(0xffff_ffff, 5)],
  seeds: () => [
    encodeFrame(FRAME.HELLO, Buffer.from('{"version":1}')),
    Buffer.concat([
      encodeFrame(FRAME.PING, new Uint8Array(0)),
      encodeFrame(FRAME.RPC, Buffer.from('{}')),
      encodeFrame(FRAME.PONG, new Uint8Array(0)),
    ]),
    encodeFrame(FRAME.BATCH, new Uint8Array(3000).fill(7)),
    encodeFrame(FRAME.JOIN, new Uint8Array(0)),
  ],
  hostile: () => ({
    'the largest batch, announced': header(2 * 1024 * 1024, FRAME.BATCH),
    'four gigabytes, announced': header(0xffff_ffff, FRAME.BATCH),
    'a batch that begins': Buffer.concat([header(2 * 1024 * 1024, FRAME.BATCH), new Uint8Array(70_000)]),
    'many frames of one byte': new Uint8Array(Buffer.concat(Array(20_000).fill(Buffer.concat([header(1, FRAME.PONG), Uint8Array.of(1)])))),
    'many empty frames': new Uint8Array(Buffer.concat(Array(20_000).fill(header(0, FRAME.PONG)))),
  }),
  async run(input) {
    const whole = decode(input, [input], 'frames')
    const cut = decode(input, pieces(input), 'push')
    const single = await decodeOneByOne(input, pieces(input))
    demand(whole.error?.code === cut.error?.code && single.error?.code === cut.error?.code, 'the error depends on how the bytes are cut')
    // push: frames before a bad one in the same chunk are not delivered; one by one they are delivered.
    demand(sameBytes(cut.bytes, single.bytes.subarray(0, cut.bytes.length)), 'the frames depend on how the bytes are cut')
    demand(sameBytes(whole.bytes, single.bytes), 'the frames depend on whether they are taken one at a time')
    demand(sameBytes(single.bytes, input.subarray(0, single.bytes.length)), 'the frames are not what came')
    if (whole.error) throw whole.error
    demand(whole.count === single.count && single.bytes.length === input.length, 'bytes are lost')
  },
}
