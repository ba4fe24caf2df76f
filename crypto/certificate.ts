// Certificates: an offline root says which keys a site or gateway has, for a short time. Pure: the time comes in.
// Enters: bytes from a peer or a file. Leaves: a Certificate, or a GodwitError (CERT_*, AUTH_FAILED). Always holds: no claim is believed before the root's
// signature over it has been verified; the layout has one encoding per certificate (docs/PROTOCOL.md, Certificates).
import { GodwitError } from '../wire/errors.ts'
import { ID_PATTERN } from '../wire/types.ts'
import { concatBytes, fromHex, Reader, toBase64, toHex, u64, utf8 } from './bytes.ts'
import { decodeKeyFile, fingerprint, formatKeyId, KEY_ID_BYTES, keyId } from './identity.ts'
import type { Revocations } from './revocation.ts'
import { SIGNATURE_BYTES, signMessage, verifyMessage } from './signature.ts'
import { equalBytes, randomBytes, sodium } from './sodium.ts'
import { encodeSubject, type Role, readSubject, type Subject } from './subject.ts'

export { createRequest, verifyRequest } from './request.ts'
export { issueRevocations, type Revocations, verifyRevocations } from './revocation.ts'

export type { Role } from './subject.ts'

export type Certificate = Subject & {
  version: 1
  /** Unix seconds, both inclusive. */
  notBefore: number
  notAfter: number
  /** 32 hex digits; what a revocation list names. */
  serial: string
  /** Fingerprint of the root. */
  issuer: string
}

/** The root's Ed25519 key. Kept offline: neither sites nor the gateway ever hold the secret. */
export type Root = { signPublic: Uint8Array; signSecret: Uint8Array }

export type VerifyOptions = {
  rootPublic: Uint8Array
  /** Unix seconds. */
  now: number
  role?: Role
  id?: string
  revocations?: Revocations
}

const LABEL = 'godwit/1 certificate'
const MAGIC = utf8('GWC1')
const SERIAL_BYTES = 16

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

/** A random serial, 32 hex digits. */
export const newSerial = (): string => toHex(randomBytes(SERIAL_BYTES))

/** Canonical bytes and the root's signature. Throws TypeError on claims that no certificate can carry. */
export function issueCertificate(root: Root, claims: Omit<Certificate, 'version' | 'issuer'>): Uint8Array {
  if (!ID_PATTERN.test(claims.serial)) throw new TypeError('a serial is 32 hex digits')
  if (!(claims.notBefore <= claims.notAfter)) throw new TypeError('notBefore is after notAfter')
  const body = concatBytes(
    MAGIC,
    encodeSubject(claims),
    u64(claims.notBefore),
    u64(claims.notAfter),
    fromHex(claims.serial),
    keyId(root.signPublic),
  )
  return concatBytes(body, signMessage(root.signSecret, LABEL, body))
}

/** Reads a certificate WITHOUT believing it: for display, and to find out whose it claims to be. Throws CERT_MALFORMED. */
export function decodeCertificate(bytes: Uint8Array): Certificate {
  return decode(bytes).certificate
}

/** The certificate, if our root signed it, it is valid now, not revoked, and of this role and id.
 * Throws CERT_MALFORMED, CERT_UNTRUSTED, CERT_EXPIRED, CERT_REVOKED; AUTH_FAILED when it is a good certificate of somebody else. */
export function verifyCertificate(bytes: Uint8Array, options: VerifyOptions): Certificate {
  const { certificate, body, signature, issuerId } = decode(bytes)
  const who = `the certificate of ${certificate.role} ${certificate.id}`
  if (!equalBytes(issuerId, keyId(options.rootPublic))) {
    throw new GodwitError('CERT_UNTRUSTED', `${who} names root ${certificate.issuer}; ours is ${fingerprint(options.rootPublic)}`)
  }
  if (!verifyMessage(options.rootPublic, LABEL, body, signature))
    throw new GodwitError('CERT_UNTRUSTED', `${who} does not carry our root's signature`)
  if (options.now < certificate.notBefore) throw new GodwitError('CERT_EXPIRED', `${who} is not valid before ${iso(certificate.notBefore)}`)
  if (options.now > certificate.notAfter) throw new GodwitError('CERT_EXPIRED', `${who} expired at ${iso(certificate.notAfter)}`)
  if (options.revocations?.serials.has(certificate.serial))
    throw new GodwitError('CERT_REVOKED', `${who} is revoked (list ${options.revocations.number})`)
  if (options.role !== undefined && certificate.role !== options.role)
    throw new GodwitError('AUTH_FAILED', `${who} is not of a ${options.role}`)
  if (options.id !== undefined && certificate.id !== options.id) throw new GodwitError('AUTH_FAILED', `${who} is not of ${options.id}`)
  return certificate
}

const iso = (seconds: number) => (seconds <= 8_640_000_000_000 ? new Date(seconds * 1000).toISOString() : `second ${seconds}`)

function decode(bytes: Uint8Array): { certificate: Certificate; body: Uint8Array; signature: Uint8Array; issuerId: Uint8Array } {
  try {
    const reader = new Reader(bytes)
    if (!equalBytes(reader.take(MAGIC.length), MAGIC)) throw new RangeError('not a certificate')
    const subject = readSubject(reader)
    const notBefore = reader.number(8)
    const notAfter = reader.number(8)
    const serial = toHex(reader.take(SERIAL_BYTES))
    const issuerId = reader.take(KEY_ID_BYTES)
    const body = bytes.slice(0, reader.offset)
    const signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    const issuer = formatKeyId(issuerId)
    return { certificate: { version: 1, ...subject, notBefore, notAfter, serial, issuer }, body, signature, issuerId }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new GodwitError('CERT_MALFORMED', `the certificate cannot be read: ${error.message}`, { cause: error })
  }
}
