// The gateway's half of the mutual authentication on the hop: HELLO -> CHALLENGE -> AUTH; WELCOME follows after the
// registration. Enters: the first frame of a new connection. Leaves: the identity, proved by a certificate of the root
// and a signature over this connection. Always holds: the gateway proves itself first, with one signature for a HELLO;
// a signature for another connection (its binding), another HELLO or an earlier nonce is worthless.
import { randomBytes } from 'node:crypto'
import { type Certificate, type Revocations, verifyCertificate } from '../../crypto/certificate.ts'
import { type LinkIdentity, type LinkTranscript, signLink, verifyLink } from '../../crypto/link-auth.ts'
import { type Clock, unixSeconds } from '../../ops/clock.ts'
import type { FrameStream } from '../../transport/frames.ts'
import { Auth, type Challenge, Hello, NONCE_BYTES } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { check, checkJson, parseJson, toJson } from '../../wire/schema.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { linkVersion, type Versions } from '../../wire/versions.ts'

export type Authority = {
  identity: LinkIdentity
  rootPublic: Uint8Array
  revocations?: (() => Revocations | undefined) | undefined
  /** Default: the range of this release. */
  versions?: Versions | undefined
  clock: Clock
}

/** `certificateBytes` is sent to the other site of a migration. */
export type ConnectedNode = { hello: Hello; certificate: Certificate; certificateBytes: Uint8Array }

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))

/** Proves both sides to each other. CERT_*, AUTH_FAILED, VERSION_UNSUPPORTED, FRAME_*. The caller sets the deadline. */
export async function authenticateNode(
  first: Frame,
  frames: FrameStream,
  binding: Uint8Array,
  authority: Authority,
): Promise<ConnectedNode> {
  const value = parseJson(first.payload, { what: 'HELLO frame' })
  const version = linkVersion(value, 'HELLO frame', 'the node', authority.versions)
  const hello = check(Hello, value, { what: 'HELLO frame' })
  const certificateBytes = bytesOf(hello.certificate)
  const revocations = authority.revocations?.()
  const certificate = verifyCertificate(certificateBytes, {
    rootPublic: authority.rootPublic,
    now: unixSeconds(authority.clock),
    role: 'site',
    ...(revocations === undefined ? {} : { revocations }),
  })

  const transcript: LinkTranscript = {
    version,
    nodeNonce: bytesOf(hello.nonce),
    gatewayNonce: new Uint8Array(randomBytes(NONCE_BYTES)),
    nodeCertificate: certificateBytes,
    gatewayCertificate: authority.identity.certificate,
    binding,
    greeting: first.payload,
  }
  const challenge: Challenge = {
    version,
    nonce: base64(transcript.gatewayNonce),
    certificate: base64(transcript.gatewayCertificate),
    signature: base64(signLink('gateway', authority.identity, transcript)),
  }
  await frames.write(FRAME.CHALLENGE, toJson(challenge))

  const reply = await frames.next(allow('AUTH'))
  if (reply === null) throw new GodwitError('AUTH_FAILED', `site ${certificate.id} closed the connection during authentication`)
  const { signature } = checkJson(Auth, reply.payload, { what: 'AUTH frame' })
  verifyLink('node', certificate, transcript, bytesOf(signature))
  return { hello, certificate, certificateBytes }
}
