// edge-node/stream/return-path.ts: QEMU's return path as the other site forwards it.
import { createReturnPathParser, encodePong, encodeReturnPath, encodeShut, RETURN_PATH } from '../../edge-node/stream/return-path.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { attempt, demand, pieces, sameBytes, type Target } from '../target.ts'

function parse(chunks: readonly Uint8Array[], recovery: boolean): { bytes: Buffer; error: GodwitError | undefined } {
  const out: Uint8Array[] = []
  const parser = createReturnPathParser({
    message: (type, payload) => out.push(encodeReturnPath(type, payload)),
    ...(recovery ? { rest: (bytes: Uint8Array) => out.push(bytes.slice()) } : {}),
  })
  const { error } = attempt(() => {
    for (const chunk of chunks) parser.push(chunk)
    parser.end()
  })
  if (error && chunks.length > 0) demand(attempt(() => parser.end()).error !== undefined, 'an error is forgotten')
  return { bytes: Buffer.concat(out), error }
}

export const returnPath: Target = {
  name: 'return-path',
  what: "edge-node/stream/return-path.ts: QEMU's return path",
  codes: ['QEMU_STREAM'],
  testRuns: 15_000,
  memoryBytes: 16 * 1024 * 1024,
  seeds: () => [
    Buffer.concat([Uint8Array.of(0), encodePong(1), encodeShut(0)]),
    Buffer.concat([
      Uint8Array.of(0),
      encodeReturnPath(RETURN_PATH.reqPages, new Uint8Array(12)),
      encodeReturnPath(RETURN_PATH.switchoverAck, new Uint8Array(0)),
    ]),
    Buffer.concat([Uint8Array.of(0), encodeReturnPath(RETURN_PATH.reqPagesId, new Uint8Array(17)), encodeShut(1)]),
    Buffer.concat([Uint8Array.of(1), encodeReturnPath(RETURN_PATH.recvBitmap, new Uint8Array(5)), new Uint8Array(40)]),
  ],
  hostile: () => ({ 'many messages': new Uint8Array(Buffer.concat([Uint8Array.of(0), ...Array(20_000).fill(encodePong(7))])) }),
  run(input) {
    const recovery = (input[0] ?? 0) % 2 === 1
    const bytes = input.subarray(1)
    const whole = parse([bytes], recovery)
    const cut = parse(pieces(bytes), recovery)
    demand(whole.error?.message === cut.error?.message && sameBytes(whole.bytes, cut.bytes), 'the messages depend on how the bytes are cut')
    demand(sameBytes(whole.bytes, bytes.subarray(0, whole.bytes.length)), 'the messages are not what came')
    if (whole.error) throw whole.error
    demand(whole.bytes.length === bytes.length, 'bytes are lost')
  },
}
