// Keyed hashes of pages (crypto/channel/page-hash.ts), and the proof that some pages have the content that is meant.
// Pure. Enters: pages. Leaves: 16 bytes. Always holds: proof(n) = hash(proof(n - 1) | hash(page n)), from 16 bytes of
// zeros on; without the key nobody can find other pages with the same proof.

/** Keyed hash of up to 4096 bytes into `out` (16 bytes). */
export type PageHasher = { readonly bytes: 16; hash(page: Uint8Array, out: Uint8Array): void }

export const PROOF_BYTES = 16

/** `hashes`: of pages in order, 16 bytes each. */
export function proofOf(hasher: PageHasher, hashes: Uint8Array): Uint8Array {
  const pair = new Uint8Array(2 * PROOF_BYTES)
  const proof = pair.subarray(0, PROOF_BYTES)
  const next = new Uint8Array(PROOF_BYTES)
  for (let at = 0; at < hashes.length; at += PROOF_BYTES) {
    pair.set(hashes.subarray(at, at + PROOF_BYTES), PROOF_BYTES)
    hasher.hash(pair, next)
    proof.set(next)
  }
  return next
}
