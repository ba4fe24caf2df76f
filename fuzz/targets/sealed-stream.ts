// edge-node/channel/sealed-stream.ts: a relay stream at its reader. The relay alters its bytes, or the peer seals bytes
// that are not frames.

import { createSealer, RECORD_DATA_BYTES_MAX } from '../../crypto/channel/record.ts'
import { loadSodium } from '../../crypto/identity.ts'
import { createSealedReader, createSealedWriter } from '../../edge-node/channel/sealed-stream.ts'
import type { Frame } from '../../wire/frame.ts'
import { encodeFrame, FrameDecoder } from '../../wire/frame.ts'
import { allow, FRAME, type FrameName } from '../../wire/types.ts'
import { scriptedStream } from '../streams.ts'
import { attempt, attemptAsync, Choices, demand, pieces, randomOf, sameBytes, type Target } from '../target.ts'
import { FUZZ_CONTEXT, FUZZ_KEY } from './records.ts'

const ALLOWED: FrameName[] = ['BATCH', 'BARRIER', 'MESSAGE', 'ACK']
const HEADER = new Uint8Array(24).fill(4)

/** The bytes in records; the input determines their sizes, and the last one is final. */
function sealed(bytes: Uint8Array): Uint8Array {
  const sealer = createSealer({ key: FUZZ_KEY, context: FUZZ_CONTEXT, header: HEADER })
  const random = randomOf(bytes)
  const out = [encodeFrame(FRAME.RECORD, HEADER)]
  let at = 0
  do {
    const take = Math.min(bytes.length - at, Math.floor(random.between(0, random.chance(0.3) ? RECORD_DATA_BYTES_MAX : 300)))
    out.push(encodeFrame(FRAME.RECORD, sealer.seal(bytes.subarray(at, at + take), { final: at + take === bytes.length })))
    at += take
  } while (at < bytes.length)
  return Buffer.concat(out)
}

async function read(chunks: readonly Uint8Array[]) {
  const stream = scriptedStream(chunks)
  const reader = createSealedReader({ stream, key: FUZZ_KEY, context: FUZZ_CONTEXT, allowed: ALLOWED })
  const frames: Frame[] = []
  const { error } = await attemptAsync(async () => {
    for await (const { type, payload } of reader.frames()) frames.push({ type, payload: payload.slice() })
  })
  demand(stream.resets.length > 0 === (error !== undefined), 'a failed stream is reset, another is not')
  return { frames: Buffer.concat(frames.map(({ type, payload }) => encodeFrame(type, payload))), error }
}

/** The frames of the same bytes without sealing. */
function plainly(bytes: Uint8Array): string {
  const decoder = new FrameDecoder(allow(...ALLOWED))
  const { error } = attempt(() => {
    decoder.push(bytes)
    decoder.end()
  })
  return error?.code ?? 'ok'
}

let honest: Uint8Array
const inner = [
  encodeFrame(FRAME.BATCH, new Uint8Array(300)),
  encodeFrame(FRAME.BARRIER, Uint8Array.of(0, 0, 0, 1)),
  encodeFrame(FRAME.ACK, new Uint8Array(8)),
]

export const sealedStream: Target = {
  name: 'sealed-stream',
  what: 'edge-node/channel/sealed-stream.ts: altered wire bytes, and sealed bytes that are no frames',
  codes: ['DECRYPT_FAILED', 'FRAME_TYPE', 'FRAME_TOO_LARGE', 'FRAME_TRUNCATED'],
  testRuns: 1500,
  async setup() {
    await loadSodium()
    const stream = scriptedStream([])
    const writer = createSealedWriter({ stream, key: FUZZ_KEY, context: FUZZ_CONTEXT })
    await writer.send(FRAME.MESSAGE, Buffer.from('{}'))
    await writer.flush()
    await writer.send(FRAME.BATCH, new Uint8Array(2000).fill(1))
    await writer.finish()
    honest = Buffer.concat(stream.written)
  },
  seeds: () => [
    Buffer.concat([Uint8Array.of(0), honest]),
    Buffer.concat([Uint8Array.of(1), ...inner]),
    Buffer.concat([Uint8Array.of(1), inner[1]!]),
    Uint8Array.of(1),
  ],
  hostile: () => ({
    'the largest batch, announced': Uint8Array.of(1, 0, 0x20, 0, 0, FRAME.BATCH),
    'a header of a megabyte': Uint8Array.of(0, 0, 1, 0, 0, FRAME.RECORD),
  }),
  async run(input) {
    const choices = new Choices(input)
    const lies = choices.number(1) % 2 === 1
    const bytes = choices.rest()
    const wire = lies ? sealed(bytes) : bytes
    const whole = await read([new Uint8Array(wire)])
    const cut = await read(pieces(wire))
    // Records before a bad outer frame in the same chunk are not opened.
    demand(!lies || whole.error?.code === cut.error?.code, `the error depends on how the bytes are cut: ${whole.error} or ${cut.error}`)
    if (whole.error) {
      if (lies) demand(plainly(bytes) !== 'ok', `what is well sealed fails: ${whole.error.message}`)
      throw whole.error
    }
    demand(sameBytes(whole.frames, cut.frames), 'the frames depend on how the bytes are cut')
    if (lies) demand(sameBytes(whole.frames, bytes), 'the frames are not what was sealed')
  },
}
