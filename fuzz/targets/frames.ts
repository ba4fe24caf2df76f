// wire/frame.ts and transport/frames.ts: bytes cut anywhere into frames. Whole, in pieces and one frame at a time must come to the same.
import { createFrameStream } from '../../transport/frames.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { encodeFrame, type Frame, FrameDecoder } from '../../wire/frame.ts'
import { allow, FRAME, type FrameName } from '../../wire/types.ts'
import { scriptedStream } from '../streams.ts'
import { attempt, attemptAsync, demand, pieces, sameBytes, type Target } from '../target.ts'

const LIMITS = allow(...(Object.keys(FRAME) as FrameName[]))
const header = (length: number, type: number) => Uint8Array.of(length >>> 24, length >>> 16, length >>> 8, length, type)

type Decoded = { frames: Frame[]; error: GodwitError | undefined }

function decode(chunks: readonly Uint8Array[]): Decoded {
  const decoder = new FrameDecoder(LIMITS)
  const frames: Frame[] = []
  const { error } = attempt(() => {
    for (const chunk of chunks) for (const { type, payload } of decoder.push(chunk)) frames.push({ type, payload: payload.slice() })
    decoder.end()
  })
  if (error) demand(attempt(() => decoder.push(header(0, FRAME.PING))).error === error, 'the first error is not final')
  return { frames, error }
}

async function decodeOneByOne(chunks: readonly Uint8Array[]): Promise<Decoded> {
  const stream = createFrameStream(scriptedStream(chunks))
  const frames: Frame[] = []
  const { error } = await attemptAsync(async () => {
    for (let frame = await stream.next(LIMITS); frame; frame = await stream.next(LIMITS)) frames.push(frame)
  })
  return { frames, error }
}

const bytesOf = ({ frames }: Decoded) => Buffer.concat(frames.map(({ type, payload }) => encodeFrame(type, payload)))

export const frames: Target = {
  name: 'frames',
  what: 'wire/frame.ts, transport/frames.ts: frames of a byte stream',
  codes: ['FRAME_TYPE', 'FRAME_TOO_LARGE', 'FRAME_TRUNCATED'],
  testRuns: 6000,
  memoryBytes: 12 * 1024 * 1024,
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
    'many empty frames': new Uint8Array(Buffer.concat(Array(20_000).fill(header(0, FRAME.PONG)))),
  }),
  async run(input) {
    const whole = decode([input])
    const cut = decode(pieces(input))
    const single = await decodeOneByOne(pieces(input))
    demand(whole.error?.code === cut.error?.code && single.error?.code === cut.error?.code, 'the error depends on how the bytes are cut')
    // Frames before a bad one in the same chunk are not delivered; one by one all are.
    const longest = bytesOf(single)
    for (const other of [bytesOf(cut), bytesOf(whole)])
      demand(sameBytes(other, longest.subarray(0, other.length)), 'the frames depend on how the bytes are cut')
    demand(sameBytes(longest, input.subarray(0, longest.length)), 'the frames are not what came')
    if (whole.error) throw whole.error
    demand(whole.frames.length === single.frames.length && longest.length === input.length, 'bytes are lost')
  },
}
