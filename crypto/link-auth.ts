// Mutual authentication of a node and the gateway on one hop, bound to the transport connection (the idea of RFC 5929's
// channel bindings). Pure. Always holds: each side signs, under its own label, everything that both have seen: nonces,
// certificates, the connection's binding and the greeting bytes. So a signature is worthless on another connection, in
// the other direction, or for another pair. Replay fails on the verifier's fresh nonce.
import { GodwitError } from '../wire/errors.ts'
import { concatBytes, field, u16, utf8 } from './bytes.ts'
import { type Certificate, decodeCertificate, type SubjectRole } from './certificate.ts'
import { hashParts } from './hash.ts'
import { fingerprint, type SiteKeys } from './identity.ts'
import { signMessage, verifyMessage } from './signature.ts'
import { equalBytes } from './sodium.ts'

type LinkSide = 'node' | 'gateway'
export type LinkIdentity = { keys: SiteKeys; certificate: Uint8Array }

const LINK_NONCE_BYTES = 32
const LINK_BINDING_BYTES = 32

export type LinkTranscript = {
  /** The link version that the gateway has chosen. */
  version: number
  /** 32 random bytes each, fresh for every connection. */
  nodeNonce: Uint8Array
  gatewayNonce: Uint8Array
  /** Certificates as they were sent. */
  nodeCertificate: Uint8Array
  gatewayCertificate: Uint8Array
  /** Connection.binding as this side sees it, 32 bytes. */
  binding: Uint8Array
  /**
   * Any other bytes that both sides have seen, such as the HELLO and CHALLENGE payloads with version and purpose; empty
   * by default.
   */
  greeting?: Uint8Array
}

const ROLE_OF: Record<LinkSide, SubjectRole> = { node: 'site', gateway: 'gateway' }
const CERTIFICATE_BYTES_MAX = 1024

/** This side's signature over the transcript, 64 bytes. */
export function signLink(side: LinkSide, identity: LinkIdentity, transcript: LinkTranscript): Uint8Array {
  const own = side === 'node' ? transcript.nodeCertificate : transcript.gatewayCertificate
  if (!equalBytes(own, identity.certificate)) throw new TypeError(`the transcript does not carry the ${side}'s own certificate`)
  return signMessage(identity.keys.signSecret, label(side), encodeTranscript(transcript))
}

/**
 * Throws AUTH_FAILED unless `signature` is that of the holder of `certificate` (verified before, and of this side's
 * role) over this transcript.
 */
export function verifyLink(side: LinkSide, certificate: Certificate, transcript: LinkTranscript, signature: Uint8Array): void {
  if (certificate.role !== ROLE_OF[side])
    throw new GodwitError('AUTH_FAILED', `${certificate.role} ${certificate.id} cannot be the ${side} of a link`)
  const shown = decodeCertificate(side === 'node' ? transcript.nodeCertificate : transcript.gatewayCertificate)
  if (!equalBytes(shown.signPublic, certificate.signPublic))
    throw new GodwitError('AUTH_FAILED', `the ${side} sent a certificate that differs from the verified one`)
  if (!verifyMessage(certificate.signPublic, label(side), encodeTranscript(transcript), signature)) {
    const key = fingerprint(certificate.signPublic)
    throw new GodwitError(
      'AUTH_FAILED',
      `the ${side} could not prove key ${key} of ${certificate.role} ${certificate.id}: wrong key, or the connection is intercepted`,
    )
  }
}

const label = (side: LinkSide) => `godwit/1 link ${side}`

function encodeTranscript(transcript: LinkTranscript): Uint8Array {
  const { version, nodeNonce, gatewayNonce, nodeCertificate, gatewayCertificate, binding, greeting = new Uint8Array(0) } = transcript
  // Sizes come from the peer too: wrong ones are an error of the peer, not a bug here.
  if (nodeNonce.length !== LINK_NONCE_BYTES || gatewayNonce.length !== LINK_NONCE_BYTES)
    throw new GodwitError('AUTH_FAILED', 'a link nonce is not 32 bytes')
  if (Math.max(nodeCertificate.length, gatewayCertificate.length) > CERTIFICATE_BYTES_MAX)
    throw new GodwitError('CERT_MALFORMED', 'the certificate is too large')
  if (binding.length !== LINK_BINDING_BYTES) throw new TypeError('a connection binding is 32 bytes')
  const greetingHash = hashParts('godwit/1 link greeting', 32, greeting)
  return concatBytes(
    utf8('GWK1'),
    u16(version),
    nodeNonce,
    gatewayNonce,
    field(nodeCertificate),
    field(gatewayCertificate),
    binding,
    greetingHash,
  )
}
