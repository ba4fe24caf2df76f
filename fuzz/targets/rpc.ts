// transport/rpc.ts: frames of an accepted peer, on a link with a pending request. The link ends with a code, and all
// sent frames are well formed.

import { createRpc } from '../../transport/rpc.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { encodeFrame, FrameDecoder } from '../../wire/frame.ts'
import { silentLog } from '../../wire/log.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { MIB } from '../../wire/units.ts'
import { scriptedStream } from '../streams.ts'
import { attemptAsync, demand, pieces, type Target } from '../target.ts'

const json = (value: unknown) => Buffer.from(JSON.stringify(value))
const rpcFrame = (value: unknown) => encodeFrame(FRAME.RPC, json(value))
const handlers = {
  echo: async (params: unknown) => params,
  fail: async () => {
    throw new Error('a handler of ours fails')
  },
}
const deep = (count: number) => `${'['.repeat(count)}${']'.repeat(count)}`

export const rpc: Target = {
  name: 'rpc',
  what: 'transport/rpc.ts: requests, answers, notifications, heartbeats',
  codes: ['FRAME_MALFORMED', 'FRAME_TYPE', 'FRAME_TOO_LARGE', 'FRAME_TRUNCATED', 'LIMIT_EXCEEDED', 'VM_UNKNOWN', 'INTERNAL'],
  testRuns: 2000,
  bytesMax: 4096,
  memoryBytes: 24 * 1024 * 1024,
  words: [
    rpcFrame({ id: 1, result: 1 }),
    rpcFrame({ id: 5, method: 'echo', params: [1] }),
    encodeFrame(FRAME.PING, new Uint8Array(0)),
    '"id":',
    '"method":"fail"',
    '"__proto__":',
    '"result":',
    '"error":{"code":"',
    'constructor',
    '9007199254740993',
  ],
  seeds: () => [
    Buffer.concat([
      rpcFrame({ id: 1, result: { a: 1 } }),
      rpcFrame({ id: 1, method: 'echo', params: { x: [] } }),
      rpcFrame({ method: 'note', params: 1 }),
    ]),
    Buffer.concat([
      rpcFrame({ id: 1, error: { code: 'VM_UNKNOWN', message: 'no' } }),
      rpcFrame({ id: 2, method: 'fail', params: null }),
      encodeFrame(FRAME.PONG, new Uint8Array(0)),
    ]),
    Buffer.concat([encodeFrame(FRAME.PING, new Uint8Array(0)), rpcFrame({ id: 3, method: 'toString', params: 0 })]),
    encodeFrame(FRAME.ERROR, json({ code: 'VM_UNKNOWN', message: 'ended', hint: 'h' })),
  ],
  hostile: () => ({
    'deep parameters to be echoed': encodeFrame(FRAME.RPC, Buffer.from(`{"id":9,"method":"echo","params":${deep(400_000)}}`)),
    'half a million keys': encodeFrame(
      FRAME.RPC,
      Buffer.from(`{"id":9,"method":"x"${Array.from({ length: 80_000 }, (_, i) => `,"k${i}":0`).join('')}}`),
    ),
    'a long message': encodeFrame(FRAME.ERROR, json({ code: 'A'.repeat(60), message: 'm'.repeat(60_000) })),
    'a method of a megabyte': rpcFrame({ id: 4, method: 'm'.repeat(MIB - 100), params: 0 }),
    'many requests': new Uint8Array(Buffer.concat(Array(5000).fill(rpcFrame({ id: 7, method: 'echo', params: 1 })))),
    'many pings': new Uint8Array(Buffer.concat(Array(20_000).fill(encodeFrame(FRAME.PING, new Uint8Array(0))))),
  }),
  async run(input) {
    const stream = scriptedStream(pieces(input))
    const link = createRpc(stream, { handlers, log: silentLog, onNotify: () => {} })
    const answer = attemptAsync(() => link.request('site.state', {}))
    const reason = await link.closed
    const { error } = await answer
    demand(reason !== null || error === undefined || error.code !== 'TIMEOUT', 'a request outlives its link')
    for (let turn = 0; turn < 3; turn++) await new Promise<void>(resolve => setImmediate(resolve))
    demandWellFormed(stream.written)
    if (reason) throw known(reason)
  },
}

/** INTERNAL may result from a peer's unknown code, not from an own failure. */
function known(error: GodwitError): GodwitError {
  if (error.code === 'INTERNAL' && error.cause !== undefined) throw error.cause
  return error
}

function demandWellFormed(written: readonly Uint8Array[]): void {
  const decoder = new FrameDecoder(allow('RPC', 'PING', 'PONG', 'ERROR'))
  for (const bytes of written)
    for (const { type, payload } of decoder.push(bytes))
      if (type === FRAME.RPC || type === FRAME.ERROR) JSON.parse(Buffer.from(payload).toString())
  decoder.end()
}
