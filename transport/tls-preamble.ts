// The first bytes of a lane of the TLS engine: 'GWL1' | u8 number of lanes | u8 index of this one | 16 bytes of token.
// Enters: bytes of an unauthenticated peer. Leaves: a preamble and the bytes after it, or FRAME_MALFORMED. Pure.
import { GodwitError } from '../wire/errors.ts'

const MAGIC = Buffer.from('GWL1')
export const TOKEN_BYTES = 16
export const PREAMBLE_BYTES = MAGIC.length + 2 + TOKEN_BYTES
export const LANES_MAX = 16

export type Preamble = { lanes: number; index: number /** Hex. */; token: string; early: Uint8Array }

export const encodePreamble = (lanes: number, index: number, token: Uint8Array): Uint8Array =>
  Buffer.concat([MAGIC, Buffer.of(lanes, index), token])

/** At least PREAMBLE_BYTES, with the bytes received after them. */
export function decodePreamble(bytes: Uint8Array): Preamble {
  const have = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const [lanes = 0, index = 0] = have.subarray(MAGIC.length)
  const isOurs = have.length >= PREAMBLE_BYTES && have.subarray(0, MAGIC.length).equals(MAGIC)
  if (!isOurs || lanes < 1 || lanes > LANES_MAX || index >= lanes) throw new GodwitError('FRAME_MALFORMED', 'a wrong preamble')
  return { lanes, index, token: have.toString('hex', MAGIC.length + 2, PREAMBLE_BYTES), early: have.subarray(PREAMBLE_BYTES) }
}
