// Renewal requests: the holder of a certificate requests the next one for the same keys. Enters: bytes from the
// gateway, which delivers them. Leaves: the certificate to renew, proved by its own key. Always holds: only the holder
// of the old key can request; a request is dated, so an old one is worthless, and the resulting certificate is
// worthless without the keys.
import { GodwitError } from '../wire/errors.ts'
import { concatBytes, field, Reader, u64, utf8 } from './bytes.ts'
import { type Certificate, decodeCertificate, type VerifyOptions, verifyCertificate } from './certificate.ts'
import type { SiteKeys } from './identity.ts'
import { SIGNATURE_BYTES, signMessage, verifyMessage } from './signature.ts'
import { equalBytes } from './sodium.ts'

const LABEL = 'godwit/1 renewal'
const MAGIC = utf8('GWU1')
/** Maximum age of a request, and how far its date may be in the future, seconds. */
export const RENEWAL_AGE_MAX_SECONDS = 7 * 86_400
const CLOCK_SKEW_SECONDS = 300
/** No certificate is renewed before this share of its validity. */
const RENEWAL_FROM = 0.5

/** `now`: Unix seconds. */
export function createRenewal(keys: SiteKeys, certificate: Uint8Array, now: number): Uint8Array {
  const body = concatBytes(MAGIC, field(certificate), u64(now))
  return concatBytes(body, signMessage(keys.signSecret, LABEL, body))
}

/**
 * The rule for an automatic approval. Returns the certificate to renew: of the trusted root, valid now, not revoked,
 * past half of its validity, requested by its own key within a week. CERT_*, AUTH_FAILED.
 */
export function verifyRenewal(bytes: Uint8Array, options: Pick<VerifyOptions, 'rootPublic' | 'now' | 'revocations'>): Certificate {
  const { certificate: shown, at, body, signature } = decode(bytes)
  const certificate = verifyCertificate(shown, options)
  const who = `the renewal of ${certificate.role} ${certificate.id}`
  if (!verifyMessage(certificate.signPublic, LABEL, body, signature))
    throw new GodwitError('AUTH_FAILED', `${who} is not signed by its key`)
  const age = options.now - at
  if (age > RENEWAL_AGE_MAX_SECONDS || age < -CLOCK_SKEW_SECONDS)
    throw new GodwitError('AUTH_FAILED', `${who} was requested ${age} s ago: check both clocks`)
  if (options.now < dueAt(certificate, RENEWAL_FROM))
    throw new GodwitError('AUTH_FAILED', `${who} was requested before half of its validity`)
  return certificate
}

/** Unix seconds at which a share of the validity has passed. */
export const dueAt = ({ notBefore, notAfter }: Pick<Certificate, 'notBefore' | 'notAfter'>, share: number): number =>
  notBefore + (notAfter - notBefore) * share

function decode(bytes: Uint8Array): { certificate: Uint8Array; at: number; body: Uint8Array; signature: Uint8Array } {
  try {
    const reader = new Reader(bytes)
    if (!equalBytes(reader.take(MAGIC.length), MAGIC)) throw new RangeError('not a renewal request')
    const certificate = reader.take(reader.number(2))
    const at = reader.number(8)
    const body = bytes.slice(0, reader.offset)
    const signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    decodeCertificate(certificate)
    return { certificate, at, body, signature }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new GodwitError('CERT_MALFORMED', `the renewal request cannot be read: ${error.message}`, { cause: error })
  }
}
