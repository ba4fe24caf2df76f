// The gateway proves itself to a site without a certificate, and only then accepts its token: ENROL_HELLO -> CHALLENGE
// -> ENROL. Enters: the first frame of an unauthenticated peer. Leaves: its ENROL frame. Always holds: the gateway
// reads a token only after it has proved itself over this connection; the signature is worthless elsewhere (fresh
// nonces, the binding, and a transcript without a node's certificate, which no link has).
import { randomBytes } from 'node:crypto'
import { type LinkTranscript, signLink } from '../../crypto/link-auth.ts'
import type { FrameStream } from '../../transport/frames.ts'
import { type Challenge, Enrol, EnrolHello, NONCE_BYTES } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { check, checkJson, parseJson, toJson } from '../../wire/schema.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { linkVersion } from '../../wire/versions.ts'
import type { Authority } from './authenticate.ts'

/** FRAME_*, VERSION_UNSUPPORTED. The caller sets the deadline. */
export async function enrolOf(first: Frame, frames: FrameStream, binding: Uint8Array, { identity, versions }: Authority): Promise<Enrol> {
  const value = parseJson(first.payload, { what: 'ENROL_HELLO frame' })
  const version = linkVersion(value, 'ENROL_HELLO frame', 'the site', versions)
  const hello = check(EnrolHello, value, { what: 'ENROL_HELLO frame' })
  const transcript: LinkTranscript = {
    version,
    nodeNonce: new Uint8Array(Buffer.from(hello.nonce, 'base64')),
    gatewayNonce: new Uint8Array(randomBytes(NONCE_BYTES)),
    nodeCertificate: new Uint8Array(),
    gatewayCertificate: identity.certificate,
    binding,
    greeting: first.payload,
  }
  const challenge: Challenge = {
    version,
    nonce: Buffer.from(transcript.gatewayNonce).toString('base64'),
    certificate: Buffer.from(identity.certificate).toString('base64'),
    signature: Buffer.from(signLink('gateway', identity, transcript)).toString('base64'),
  }
  await frames.write(FRAME.CHALLENGE, toJson(challenge))
  const reply = await frames.next(allow('ENROL'))
  if (reply === null) throw new GodwitError('FRAME_TRUNCATED', 'the site closed the connection before its enrolment request')
  return checkJson(Enrol, reply.payload, { what: 'ENROL frame' })
}
