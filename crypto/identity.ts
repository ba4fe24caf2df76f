// The keys of a site or gateway: an Ed25519 key that signs, a separate X25519 key for the end-to-end handshake, and
// fingerprints that a person can read aloud. Always holds: secrets leave only through encodeKeys (for a 0600 file). The
// gateway may import this file, certificate.ts and link-auth.ts, but not crypto/channel.
import { GodwitError } from '../wire/errors.ts'
import { fromBase64, toBase64 } from './bytes.ts'
import { hashParts } from './hash.ts'
import { equalBytes, sodium } from './sodium.ts'

export { createEnrolmentToken, ENROLMENT_TOKEN_TTL_MAX_SECONDS, hashEnrolmentToken, matchesEnrolmentToken } from './enrolment.ts'
export { signMessage, verifyMessage } from './signature.ts'
export { loadSodium } from './sodium.ts'

/** Ed25519 (public 32 bytes, secret 64 as libsodium keeps it) and X25519 (32 and 32). */
export type SiteKeys = { signPublic: Uint8Array; signSecret: Uint8Array; boxPublic: Uint8Array; boxSecret: Uint8Array }

export const KEY_ID_BYTES = 16
const BASE32 = '0123456789abcdefghjkmnpqrstvwxyz'
const SEED_BYTES = 32

export function generateSiteKeys(): SiteKeys {
  const sign = sodium().crypto_sign_keypair()
  const box = sodium().crypto_box_keypair()
  return { signPublic: sign.publicKey, signSecret: sign.privateKey, boxPublic: box.publicKey, boxSecret: box.privateKey }
}

/** BLAKE2b-128 of a public key: certificates identify their issuer by it. */
export const keyId = (publicKey: Uint8Array): Uint8Array => hashParts('godwit/1 key id', KEY_ID_BYTES, publicKey)

/**
 * Five groups of five characters (the first 125 bits of the key id in Crockford's base 32: no i, l, o, u), for
 * comparison by phone.
 */
export const fingerprint = (publicKey: Uint8Array): string => formatKeyId(keyId(publicKey))

/** The fingerprint of a key whose id is known. */
export function formatKeyId(id: Uint8Array): string {
  let bits = id.reduce((sum, byte) => sum * 256n + BigInt(byte), 0n) >> 3n
  let text = ''
  for (let i = 0; i < 25; i++) {
    text = BASE32[Number(bits % 32n)] + (i % 5 === 0 && i > 0 ? '-' : '') + text
    bits /= 32n
  }
  return text
}

/** JSON for a file that only its owner may read. Holds the secrets. */
export function encodeKeys(keys: SiteKeys): string {
  const sign = toBase64(keys.signSecret.subarray(0, SEED_BYTES))
  return `${JSON.stringify({ version: 1, kind: 'godwit-site-keys', sign, box: toBase64(keys.boxSecret) }, null, 2)}\n`
}

/** Reads what encodeKeys wrote; the public keys are computed from the secrets. Throws CONFIG_INVALID. */
export function decodeKeys(text: string): SiteKeys {
  const { sign, box } = decodeKeyFile(text, 'godwit-site-keys', ['sign', 'box'])
  const pair = sodium().crypto_sign_seed_keypair(sign!)
  return { signPublic: pair.publicKey, signSecret: pair.privateKey, boxPublic: sodium().crypto_scalarmult_base(box!), boxSecret: box! }
}

/** The 32-byte fields of a key file of this kind. Throws CONFIG_INVALID naming the field, never showing a value. */
export function decodeKeyFile(text: string, kind: string, names: string[]): Record<string, Uint8Array> {
  let file: unknown
  try {
    file = JSON.parse(text)
  } catch {
    throw new GodwitError('CONFIG_INVALID', 'the key file is not JSON')
  }
  const fields = (typeof file === 'object' && file !== null ? file : {}) as Record<string, unknown>
  if (fields['kind'] !== kind) throw new GodwitError('CONFIG_INVALID', `the key file is not of kind ${kind}`)
  if (fields['version'] !== 1) throw new GodwitError('CONFIG_INVALID', 'the key file is of an unknown version')
  return Object.fromEntries(names.map(name => [name, decodeSecret(fields[name], name)]))
}

function decodeSecret(value: unknown, name: string): Uint8Array {
  try {
    const bytes = fromBase64(String(value))
    if (bytes.length === SEED_BYTES && !equalBytes(bytes, new Uint8Array(SEED_BYTES))) return bytes
  } catch {
    // Falls through to the one message below.
  }
  throw new GodwitError('CONFIG_INVALID', `the key file's ${name} is not base64 of 32 bytes`)
}
