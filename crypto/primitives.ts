// The interface between Godwit's cryptography and the two builds of libsodium: operations on bulk data for record.ts,
// page-hash.ts and hash.ts. Always holds: both implementations produce the same bytes (test/crypto/primitives.test.ts
// seals with one and opens with the other, in both directions).

/** One end of one crypto_secretstream_xchacha20poly1305. Not usable after wipe(). */
export type SecretStream = {
  /**
   * Seals `message` into `out` (message length + 17). `message` may be `out.subarray(1, 1 + n)`: sealed in place,
   * without a copy.
   */
  push(out: Uint8Array, message: Uint8Array, additionalData: Uint8Array, tag: number): void
  /**
   * Opens `record` into `out` (record length - 17), which may be `record.subarray(1, -16)`. Returns the tag, or -1 (and
   * `out` unchanged) if it does not verify.
   */
  pull(out: Uint8Array, record: Uint8Array, additionalData: Uint8Array): number
  /** Zeroes and frees the state. Idempotent. */
  wipe(): void
}

/** BLAKE2b under one key, for many short inputs. Allocates nothing per call. */
export type KeyedHash = {
  /** Into `out` (16..64 bytes); `input` must not exceed the announced size. */
  hash(out: Uint8Array, input: Uint8Array): void
  /** Zeroes and frees what it holds. Idempotent. */
  wipe(): void
}

export type Primitives = {
  readonly name: 'native' | 'portable'
  /** BLAKE2b of `input` into `out` (16..64 bytes). */
  hash(out: Uint8Array, input: Uint8Array): void
  /** `key` is 16..64 bytes and is copied. */
  keyedHash(key: Uint8Array, inputBytesMax: number): KeyedHash
  /**
   * State for both directions: the sealer of a stream chooses its header (24 random bytes) and sends it to the opener.
   */
  secretStream(key: Uint8Array, header: Uint8Array): SecretStream
}

export const STREAM_KEY_BYTES = 32
export const STREAM_HEADER_BYTES = 24
export const TAG_MESSAGE = 0
export const TAG_REKEY = 2
export const TAG_FINAL = 3
