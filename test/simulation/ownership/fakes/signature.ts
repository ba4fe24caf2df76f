// crypto/signature.ts in the simulation: a keyed hash stands for Ed25519. It verifies under the key pair that made it,
// and under no other text.
import { hashBytes } from '../../../../crypto/hash.ts'

const LABEL_BYTES = 32

function mark(publicKey: Uint8Array, label: string, message: Uint8Array): Uint8Array {
  return new Uint8Array(hashBytes(Buffer.concat([publicKey.subarray(0, LABEL_BYTES), Buffer.from(label), message])))
}
/** libsodium's secret key ends with the public one. */
export const signMessage = (secret: Uint8Array, label: string, message: Uint8Array): Uint8Array => mark(secret.subarray(32), label, message)
export const verifyMessage = (publicKey: Uint8Array, label: string, message: Uint8Array, signature: Uint8Array): boolean =>
  Buffer.compare(mark(publicKey, label, message), signature) === 0
