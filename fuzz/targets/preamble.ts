// transport/tls-preamble.ts: the first bytes of an unauthenticated TCP connection. An accepted preamble encodes to the
// same bytes.
import { decodePreamble, encodePreamble, LANES_MAX, PREAMBLE_BYTES } from '../../transport/tls-preamble.ts'
import { demand, sameBytes, type Target } from '../target.ts'

const token = new Uint8Array(16).fill(0x5a)

export const preamble: Target = {
  name: 'preamble',
  what: 'transport/tls-preamble.ts: the first bytes of a lane of the TLS engine',
  codes: ['FRAME_MALFORMED'],
  testRuns: 6000,
  bytesMax: 256,
  words: ['GWL1', Uint8Array.of(16, 15), Uint8Array.of(17, 0), Uint8Array.of(1, 1)],
  seeds: () => [
    encodePreamble(1, 0, token),
    encodePreamble(LANES_MAX, LANES_MAX - 1, token),
    Buffer.concat([encodePreamble(4, 2, token), Buffer.from('what follows')]),
  ],
  run(input) {
    const { lanes, index, token: hex, early } = decodePreamble(input)
    demand(lanes >= 1 && lanes <= LANES_MAX && index < lanes, 'a lane that cannot be')
    demand(sameBytes(encodePreamble(lanes, index, Buffer.from(hex, 'hex')), input.subarray(0, PREAMBLE_BYTES)), 'two encodings')
    demand(sameBytes(early, input.subarray(PREAMBLE_BYTES)), 'bytes are lost')
  },
}
