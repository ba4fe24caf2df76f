// crypto/signature.ts in the simulation: a keyed hash stands for Ed25519. It verifies under the key pair that made it,
// and under no other text.
import { hashBytes } from '../../../../crypto/hash.ts'

export const SIGNATURE_BYTES = 64
export const SIGN_PUBLIC_BYTES = 32

function mark(publicKey: Uint8Array, label: string, message: Uint8Array): Uint8Array {
  const half = hashBytes(Buffer.concat([publicKey, Buffer.from(label), message]))
  return new Uint8Array(Buffer.concat([half, half]))
}
/** libsodium's secret key ends with the public one. */
export const signMessage = (secret: Uint8Array, label: string, message: Uint8Array): Uint8Array =>
  mark(secret.subarray(-SIGN_PUBLIC_BYTES), label, message)
export const verifyMessage = (publicKey: Uint8Array, label: string, message: Uint8Array, signature: Uint8Array): boolean =>
  Buffer.compare(mark(publicKey, label, message), signature) === 0
