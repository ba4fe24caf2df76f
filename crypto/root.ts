// The root key: it signs certificates, revocation lists and fencing statements. Enters: the text of its file. Leaves:
// the key.
import { toBase64 } from './bytes.ts'
import { decodeKeyFile } from './identity.ts'
import { sodium } from './sodium.ts'

/** The root's Ed25519 key. Kept offline: neither sites nor the gateway ever hold the secret. */
export type Root = { signPublic: Uint8Array; signSecret: Uint8Array }

export function createRoot(): Root {
  const pair = sodium().crypto_sign_keypair()
  return { signPublic: pair.publicKey, signSecret: pair.privateKey }
}

/** JSON for a file that only the operator may read. Holds the secret. */
export function encodeRoot(root: Root): string {
  return `${JSON.stringify({ version: 1, kind: 'godwit-root-key', sign: toBase64(root.signSecret.subarray(0, 32)) }, null, 2)}\n`
}

/** Reads what encodeRoot wrote. Throws CONFIG_INVALID. */
export function decodeRoot(text: string): Root {
  const { sign } = decodeKeyFile(text, 'godwit-root-key', ['sign'])
  const pair = sodium().crypto_sign_seed_keypair(sign!)
  return { signPublic: pair.publicKey, signSecret: pair.privateKey }
}
