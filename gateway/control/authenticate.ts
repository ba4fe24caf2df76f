// The gateway's half of the hop's mutual authentication: HELLO -> CHALLENGE -> AUTH; WELCOME follows once the site has been registered.
// Enters: the first frame of a fresh connection. Leaves: who it is, proved by a certificate of our root and a signature over this connection.
// Always holds: the gateway proves itself first and costs itself one signature for a HELLO; a signature for another connection (its binding),
// another HELLO or an earlier nonce is worthless.
import { randomBytes } from 'node:crypto'
import { type Certificate, type Revocations, verifyCertificate } from '../../crypto/certificate.ts'
import { type LinkIdentity, type LinkTranscript, signLink, verifyLink } from '../../crypto/link-auth.ts'
import { type Clock, unixSeconds } from '../../ops/clock.ts'
import type { FrameStream } from '../../transport/frames.ts'
import { Auth, type Challenge, Hello, NONCE_BYTES } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { checkJson, toJson } from '../../wire/schema.ts'
import { allow, FRAME, PROTOCOL_VERSION } from '../../wire/types.ts'

export type Authority = {
  identity: LinkIdentity
  rootPublic: Uint8Array
  revocations?: (() => Revocations | undefined) | undefined
  clock: Clock
}

/** `certificateBytes` is what the other site of a migration gets to see. */
export type Peer = { hello: Hello; certificate: Certificate; certificateBytes: Uint8Array }

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))

/** Proves both sides to each other. CERT_*, AUTH_FAILED, VERSION_UNSUPPORTED, FRAME_*. The caller sets the deadline. */
export async function authenticateNode(first: Frame, frames: FrameStream, binding: Uint8Array, authority: Authority): Promise<Peer> {
  const hello = checkJson(Hello, first.payload, { what: 'HELLO frame' })
  if (hello.version !== PROTOCOL_VERSION)
    throw new GodwitError('VERSION_UNSUPPORTED', `the node speaks version ${hello.version}, this gateway ${PROTOCOL_VERSION}`)
  const certificateBytes = bytesOf(hello.certificate)
  const revocations = authority.revocations?.()
  const certificate = verifyCertificate(certificateBytes, {
    rootPublic: authority.rootPublic,
    now: unixSeconds(authority.clock),
    role: 'site',
    ...(revocations === undefined ? {} : { revocations }),
  })

  const transcript: LinkTranscript = {
    nodeNonce: bytesOf(hello.nonce),
    gatewayNonce: new Uint8Array(randomBytes(NONCE_BYTES)),
    nodeCertificate: certificateBytes,
    gatewayCertificate: authority.identity.certificate,
    binding,
    greeting: first.payload,
  }
  const challenge: Challenge = {
    version: PROTOCOL_VERSION,
    nonce: base64(transcript.gatewayNonce),
    certificate: base64(transcript.gatewayCertificate),
    signature: base64(signLink('gateway', authority.identity, transcript)),
  }
  await frames.write(FRAME.CHALLENGE, toJson(challenge))

  const reply = await frames.next(allow('AUTH'))
  if (reply === null) throw new GodwitError('AUTH_FAILED', `site ${certificate.id} left during authentication`)
  const { signature } = checkJson(Auth, reply.payload, { what: 'AUTH frame' })
  verifyLink('node', certificate, transcript, bytesOf(signature))
  return { hello, certificate, certificateBytes }
}
