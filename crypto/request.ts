// Certificate requests: a site or gateway names its keys and proves that it holds the signing key. The handshake itself
// proves the box key. Enters: bytes from an unauthenticated peer. Leaves: claims that only their own key confirms: a
// person or a token must confirm the name.
import { GodwitError } from '../wire/errors.ts'
import { concatBytes, Reader, utf8 } from './bytes.ts'
import type { SiteKeys } from './identity.ts'
import { SIGNATURE_BYTES, signMessage, verifyMessage } from './signature.ts'
import { equalBytes } from './sodium.ts'
import { encodeSubject, readSubject, type Subject, type SubjectRole } from './subject.ts'

const LABEL = 'godwit/1 request'
const MAGIC = utf8('GWR1')

/** Canonical bytes, signed by the key that they contain. */
export function createRequest(keys: SiteKeys, { role, id }: { role: SubjectRole; id: string }): Uint8Array {
  const body = concatBytes(MAGIC, encodeSubject({ role, id, signPublic: keys.signPublic, boxPublic: keys.boxPublic }))
  return concatBytes(body, signMessage(keys.signSecret, LABEL, body))
}

/**
 * The claims of a request whose signature is its own key's. Throws CERT_MALFORMED, or AUTH_FAILED when the signature is
 * wrong.
 */
export function verifyRequest(bytes: Uint8Array): Subject {
  const { claims, body, signature } = decode(bytes)
  if (!verifyMessage(claims.signPublic, LABEL, body, signature))
    throw new GodwitError('AUTH_FAILED', `the request for ${claims.id} is not signed by its own key`)
  return claims
}

function decode(bytes: Uint8Array): { claims: Subject; body: Uint8Array; signature: Uint8Array } {
  try {
    const reader = new Reader(bytes)
    if (!equalBytes(reader.take(MAGIC.length), MAGIC)) throw new RangeError('not a certificate request')
    const claims = readSubject(reader)
    const body = bytes.slice(0, reader.offset)
    const signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return { claims, body, signature }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new GodwitError('CERT_MALFORMED', `the request cannot be read: ${error.message}`, { cause: error })
  }
}
