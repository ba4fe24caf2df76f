// Certificates: an offline root certifies the keys of a site or gateway for a limited time. Pure: the time is passed
// in. Enters: bytes from a peer or a file. Leaves: a Certificate, or a GodwitError (CERT_*, AUTH_FAILED). Always holds:
// no claim is used before the root's signature over it is verified; each certificate has one encoding
// (docs/reference/protocol.md, Certificates).
import { GodwitError } from '../wire/errors.ts'
import { ID_PATTERN } from '../wire/types.ts'
import { concatBytes, fromHex, Reader, toHex, u64, utf8 } from './bytes.ts'
import { fingerprint, formatKeyId, KEY_ID_BYTES, keyId } from './identity.ts'
import type { Revocations } from './revocation.ts'
import type { Root } from './root.ts'
import { SIGNATURE_BYTES, signMessage, verifyMessage } from './signature.ts'
import { equalBytes, randomBytes } from './sodium.ts'
import { encodeSubject, readSubject, type Subject, type SubjectRole } from './subject.ts'

export { createRequest, verifyRequest } from './request.ts'
export { issueRevocations, type Revocations, verifyRevocations } from './revocation.ts'
export { createRoot, decodeRoot, encodeRoot, type Root } from './root.ts'

export type { SubjectRole } from './subject.ts'

export type Certificate = Subject & {
  version: 1
  /** Unix seconds, both inclusive. */
  notBefore: number
  notAfter: number
  /** 32 hex digits; revocation lists contain it. */
  serial: string
  /** Fingerprint of the root. */
  issuer: string
}

export type VerifyOptions = {
  rootPublic: Uint8Array
  /** Unix seconds. */
  now: number
  role?: SubjectRole
  id?: string
  revocations?: Revocations
}

const LABEL = 'godwit/1 certificate'
const MAGIC = utf8('GWC1')
const SERIAL_BYTES = 16

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

/** Reads a certificate WITHOUT verifying it: for display, and to find out its claimed owner. Throws CERT_MALFORMED. */
export function decodeCertificate(bytes: Uint8Array): Certificate {
  return decode(bytes).certificate
}

/**
 * Returns the certificate if the trusted root signed it and it is valid now, not revoked, and of this role and id.
 * Throws CERT_MALFORMED, CERT_UNTRUSTED, CERT_EXPIRED, CERT_REVOKED; AUTH_FAILED if it is a valid certificate of
 * another party.
 */
export function verifyCertificate(bytes: Uint8Array, options: VerifyOptions): Certificate {
  const { certificate, body, signature, issuerId } = decode(bytes)
  const who = `the certificate of ${certificate.role} ${certificate.id}`
  if (!equalBytes(issuerId, keyId(options.rootPublic))) {
    throw new GodwitError('CERT_UNTRUSTED', `${who} is of root ${certificate.issuer}, trusted is ${fingerprint(options.rootPublic)}`)
  }
  if (!verifyMessage(options.rootPublic, LABEL, body, signature))
    throw new GodwitError('CERT_UNTRUSTED', `${who} has no valid signature of the trusted root`)
  if (options.now < certificate.notBefore) throw new GodwitError('CERT_EXPIRED', `${who} is not valid before ${iso(certificate.notBefore)}`)
  if (options.now > certificate.notAfter) throw new GodwitError('CERT_EXPIRED', `${who} expired at ${iso(certificate.notAfter)}`)
  if (options.revocations?.serials.has(certificate.serial))
    throw new GodwitError('CERT_REVOKED', `${who} is revoked (list ${options.revocations.number})`)
  if (options.role !== undefined && certificate.role !== options.role)
    throw new GodwitError('AUTH_FAILED', `${who} is not for a ${options.role}`)
  if (options.id !== undefined && certificate.id !== options.id) throw new GodwitError('AUTH_FAILED', `${who} is not for ${options.id}`)
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
