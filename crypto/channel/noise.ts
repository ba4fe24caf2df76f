// The symmetric half of the Noise Protocol Framework (revision 34, sections 4 and 5) for 25519, ChaChaPoly and BLAKE2b.
// Pure: every function gives a new state. Always holds: a key is never used twice with one nonce; the hash h covers
// every byte of the handshake so far.
import { concatBytes, utf8 } from '../bytes.ts'
import { equalBytes, portable, sodium } from '../sodium.ts'

export const DH_BYTES = 32
const HASH_BYTES = 64
export const MAC_BYTES = 16
const HMAC_BLOCK_BYTES = 128
const KEY_BYTES = 32

/** Noise's SymmetricState: chaining key, handshake hash, and the CipherState's key and counter. */
export type SymmetricState = { ck: Uint8Array; h: Uint8Array; key: Uint8Array | undefined; nonce: number }

/** Thrown for any bytes that do not verify; handshake.ts turns it into HANDSHAKE_FAILED. */
export class NoiseFailure extends Error {}

function hash(...parts: Uint8Array[]): Uint8Array {
  const out = new Uint8Array(HASH_BYTES)
  portable().hash(out, concatBytes(...parts))
  return out
}

/**
 * HMAC-BLAKE2b (RFC 2104, block 128 bytes): Noise's HKDF is defined over HMAC, not over BLAKE2b's own keyed mode, and
 * libsodium has no such HMAC.
 */
export function hmac(key: Uint8Array, ...parts: Uint8Array[]): Uint8Array {
  const block = new Uint8Array(HMAC_BLOCK_BYTES)
  block.set(key.length > HMAC_BLOCK_BYTES ? hash(key) : key)
  const inner = hash(
    block.map(byte => byte ^ 0x36),
    ...parts,
  )
  const out = hash(
    block.map(byte => byte ^ 0x5c),
    inner,
  )
  block.fill(0)
  return out
}

/** Noise section 4.3, two outputs of 64 bytes. */
function hkdf(chainingKey: Uint8Array, input: Uint8Array): [Uint8Array, Uint8Array] {
  const temporary = hmac(chainingKey, input)
  const first = hmac(temporary, Uint8Array.of(1))
  const second = hmac(temporary, first, Uint8Array.of(2))
  temporary.fill(0)
  return [first, second]
}

/** InitializeSymmetric. */
export function initialize(protocolName: string): SymmetricState {
  const name = utf8(protocolName)
  const h = new Uint8Array(HASH_BYTES)
  if (name.length <= HASH_BYTES) h.set(name)
  else h.set(hash(name))
  return { ck: h.slice(), h, key: undefined, nonce: 0 }
}

/** MixHash. */
export const mixHash = (state: SymmetricState, bytes: Uint8Array): SymmetricState => ({ ...state, h: hash(state.h, bytes) })

/** MixKey. Zeroes `input`, which is always a fresh shared secret. */
export function mixKey(state: SymmetricState, input: Uint8Array): SymmetricState {
  const [ck, temporary] = hkdf(state.ck, input)
  const key = temporary.slice(0, KEY_BYTES)
  temporary.fill(0)
  input.fill(0)
  return { ...state, ck, key, nonce: 0 }
}

/** EncryptAndHash. In KK a key is always there before anything is encrypted. */
export function encryptAndHash(state: SymmetricState, plaintext: Uint8Array): { state: SymmetricState; ciphertext: Uint8Array } {
  if (!state.key) throw new Error('no key yet')
  const ciphertext = sealTransport(state.key, state.nonce, state.h, plaintext)
  return { state: mixHash({ ...state, nonce: state.nonce + 1 }, ciphertext), ciphertext }
}

/** DecryptAndHash. Throws NoiseFailure. */
export function decryptAndHash(state: SymmetricState, ciphertext: Uint8Array): { state: SymmetricState; plaintext: Uint8Array } {
  if (!state.key) throw new Error('no key yet')
  const plaintext = openTransport(state.key, state.nonce, state.h, ciphertext)
  return { state: mixHash({ ...state, nonce: state.nonce + 1 }, ciphertext), plaintext }
}

/** ENCRYPT of section 4.2: ChaCha20-Poly1305 of RFC 8439, nonce = 4 zero bytes | u64le counter. */
export function sealTransport(key: Uint8Array, counter: number, additionalData: Uint8Array, plaintext: Uint8Array): Uint8Array {
  return sodium().crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, additionalData, null, nonceOf(counter), key)
}

/** DECRYPT of section 4.2. Throws NoiseFailure. */
export function openTransport(key: Uint8Array, counter: number, additionalData: Uint8Array, ciphertext: Uint8Array): Uint8Array {
  try {
    return sodium().crypto_aead_chacha20poly1305_ietf_decrypt(null, ciphertext, additionalData, nonceOf(counter), key)
  } catch (error) {
    throw new NoiseFailure('does not verify', { cause: error })
  }
}

/** DH. Throws NoiseFailure when the result is all zeros (a public key of low order). */
export function dh(secret: Uint8Array, remotePublic: Uint8Array): Uint8Array {
  try {
    const shared = sodium().crypto_scalarmult(secret, remotePublic)
    if (!equalBytes(shared, new Uint8Array(DH_BYTES))) return shared
  } catch (error) {
    throw new NoiseFailure('weak public key', { cause: error })
  }
  throw new NoiseFailure('weak public key')
}

/** Split: the initiator's and the responder's transport key, 32 bytes each. */
export function split(state: SymmetricState): [Uint8Array, Uint8Array] {
  const [first, second] = hkdf(state.ck, new Uint8Array(0))
  return [first.slice(0, KEY_BYTES), second.slice(0, KEY_BYTES)]
}

function nonceOf(counter: number): Uint8Array {
  const nonce = new Uint8Array(12)
  new DataView(nonce.buffer).setBigUint64(4, BigInt(counter), true)
  return nonce
}
