// Fixed keys, so that an input can be replayed. Only for fuzzing.
import type { Root } from '../crypto/certificate.ts'
import type { SiteKeys } from '../crypto/identity.ts'
import { sodium } from '../crypto/sodium.ts'

/** Keys whose secrets are this byte, repeated. Requires loadSodium(). */
export function fixedKeys(fill: number): SiteKeys {
  const { publicKey: signPublic, privateKey: signSecret } = sodium().crypto_sign_seed_keypair(new Uint8Array(32).fill(fill))
  const boxSecret = new Uint8Array(32).fill(fill + 100)
  return { signPublic, signSecret, boxSecret, boxPublic: sodium().crypto_scalarmult_base(boxSecret) }
}

export const fixedRoot = (): Root => {
  const { signPublic, signSecret } = fixedKeys(1)
  return { signPublic, signSecret }
}
