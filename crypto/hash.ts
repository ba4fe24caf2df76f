// BLAKE2b (RFC 7693) with a label in front of every input: a hash for one purpose never equals a hash for another.
import { concatBytes, u8, utf8 } from './bytes.ts'
import { fastest } from './sodium.ts'

/**
 * BLAKE2b of label and parts, `bytes` long (16..64). The caller makes `parts` unambiguous (fixed widths or `field`).
 */
export function hashParts(label: string, bytes: number, ...parts: Uint8Array[]): Uint8Array {
  const out = new Uint8Array(bytes)
  fastest().hash(out, concatBytes(u8(label.length), utf8(label), ...parts))
  return out
}

/** BLAKE2b-256 of some bytes, e.g. of a plan for the prologue. */
export const hashBytes = (bytes: Uint8Array): Uint8Array => hashParts('godwit/1 bytes', 32, bytes)
