// Ed25519 signatures under a label: a signature for one purpose is worthless for another. Always holds: the signed
// bytes are u8 label length | label | message.
import { concatBytes, u8, utf8 } from './bytes.ts'
import { sodium } from './sodium.ts'

export const SIGNATURE_BYTES = 64
export const SIGN_PUBLIC_BYTES = 32

const labelled = (label: string, message: Uint8Array) => concatBytes(u8(label.length), utf8(label), message)

/** Signature over a labelled message, 64 bytes. */
export function signMessage(signSecret: Uint8Array, label: string, message: Uint8Array): Uint8Array {
  return sodium().crypto_sign_detached(labelled(label, message), signSecret)
}

/** Whether the signature is this key's over this labelled message. Never throws for bytes of a peer. */
export function verifyMessage(signPublic: Uint8Array, label: string, message: Uint8Array, signature: Uint8Array): boolean {
  if (signature.length !== SIGNATURE_BYTES || signPublic.length !== SIGN_PUBLIC_BYTES) return false
  return sodium().crypto_sign_verify_detached(signature, labelled(label, message), signPublic)
}
