// The key schedule: from the root key of a handshake to one key for each direction of each stream, and one for page
// hashes (libsodium's crypto_kdf, BLAKE2b). Always holds: no two (direction, index, attempt) share a key; a reconnect
// is a new handshake and a new attempt, so no counter is ever resumed.
import type { Direction } from '../../wire/roles.ts'
import { sodium } from '../sodium.ts'

type StreamName = { direction: Direction; index: number; attempt: number }

const ROOT_KEY_BYTES = 32
const STREAM_CONTEXT = 'gw1strm_'
const PAGE_CONTEXT = 'gw1page_'
const KEY_INDEX_MAX = 0xffff
const KEY_ATTEMPT_MAX = 0xffff_ffff

export const directionNumber = (direction: Direction): 1 | 2 => (direction === 'source-to-target' ? 1 : 2)

/** Key of one direction of one stream, 32 bytes. Subkey id: attempt << 32 | index << 8 | direction. */
export function deriveStreamKey(rootKey: Uint8Array, { direction, index, attempt }: StreamName): Uint8Array {
  checkRange('index', index, KEY_INDEX_MAX)
  checkRange('attempt', attempt, KEY_ATTEMPT_MAX)
  const id = (BigInt(attempt) << 32n) | (BigInt(index) << 8n) | BigInt(directionNumber(direction))
  return derive(rootKey, STREAM_CONTEXT, id)
}

/** Key of the source's page hashes and of its proofs for pages from disks, 32 bytes. */
export const derivePageHashKey = (rootKey: Uint8Array): Uint8Array => derive(rootKey, PAGE_CONTEXT, 0n)

function derive(rootKey: Uint8Array, context: string, id: bigint): Uint8Array {
  if (rootKey.length !== ROOT_KEY_BYTES) throw new TypeError('a root key is 32 bytes')
  // The wrappers take a bigint id (64 bits); their published types know numbers only.
  return sodium().crypto_kdf_derive_from_key(32, id as unknown as number, context, rootKey)
}

function checkRange(name: string, value: number, max: number): void {
  if (!Number.isInteger(value) || value < 0 || value > max) throw new TypeError(`stream ${name} ${value} is not 0..${max}`)
}
