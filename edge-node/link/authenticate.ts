// The node's half of the hop's mutual authentication: HELLO -> CHALLENGE -> AUTH -> WELCOME (docs/PROTOCOL.md).
// Enters: a fresh connection. Leaves: the framed control stream behind WELCOME, or a coded error (CERT_*, AUTH_FAILED, VERSION_UNSUPPORTED,
// or what the gateway says in an ERROR frame).
// Always holds: the node signs only after the gateway has proved, over this very connection (its binding is signed), that our root vouches for it.
import { type Revocations, verifyCertificate } from '../../crypto/certificate.ts'
import { type LinkIdentity, type LinkTranscript, signLink, verifyLink } from '../../crypto/link-auth.ts'
import type { Clock } from '../../ops/clock.ts'
import { unixSeconds } from '../../ops/clock.ts'
import { createFrameStream, type FrameStream } from '../../transport/frames.ts'
import type { Connection } from '../../transport/types.ts'
import { Challenge, ErrorBody, type Hello, NONCE_BYTES, type Purpose, Welcome } from '../../wire/control.ts'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import { checkJson, toJson, type z } from '../../wire/schema.ts'
import { allow, FRAME, type FrameName, PROTOCOL_VERSION } from '../../wire/types.ts'

export type NodeAuthentication = {
  connection: Connection
  purpose: Purpose
  incarnation: number
  identity: LinkIdentity
  rootPublic: Uint8Array
  /** A gateway whose certificate is on this list is refused (CERT_REVOKED). */
  revocations?: Revocations | undefined
  /** Only this gateway will do; any of our root's gateways when absent. */
  gatewayId?: string | undefined
  clock: Clock
  random: (bytes: number) => Uint8Array
}

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))

/** Opens the control stream and authenticates both sides. The caller sets the deadline and closes the connection on failure. */
export async function authenticateToGateway(options: NodeAuthentication): Promise<{ frames: FrameStream; welcome: Welcome }> {
  const { connection, purpose, incarnation, identity, random } = options
  const frames = createFrameStream(await connection.openStream())
  const nonce = random(NONCE_BYTES)
  const hello: Hello = {
    version: PROTOCOL_VERSION,
    purpose,
    incarnation,
    nonce: base64(nonce),
    certificate: base64(identity.certificate),
  }
  const greeting = toJson(hello)
  await frames.write(FRAME.HELLO, greeting)

  const challenge = await expect(frames, 'CHALLENGE', Challenge)
  if (challenge.version !== PROTOCOL_VERSION)
    throw new GodwitError('VERSION_UNSUPPORTED', `the gateway speaks version ${challenge.version}, this node ${PROTOCOL_VERSION}`)
  const transcript: LinkTranscript = {
    nodeNonce: nonce,
    gatewayNonce: bytesOf(challenge.nonce),
    nodeCertificate: identity.certificate,
    gatewayCertificate: bytesOf(challenge.certificate),
    binding: connection.binding,
    greeting,
  }
  const certificate = verifyCertificate(transcript.gatewayCertificate, {
    rootPublic: options.rootPublic,
    now: unixSeconds(options.clock),
    role: 'gateway',
    ...(options.gatewayId === undefined ? {} : { id: options.gatewayId }),
    ...(options.revocations === undefined ? {} : { revocations: options.revocations }),
  })
  verifyLink('gateway', certificate, transcript, bytesOf(challenge.signature))

  await frames.write(FRAME.AUTH, toJson({ signature: base64(signLink('node', identity, transcript)) }))
  return { frames, welcome: await expect(frames, 'WELCOME', Welcome) }
}

/** The next frame, which must be of this type; an ERROR frame is thrown as the error that it carries. */
export async function expect<S extends z.ZodType>(frames: FrameStream, name: FrameName, schema: S): Promise<z.output<S>> {
  const frame = await frames.next(allow(name, 'ERROR'))
  if (frame === null) throw new GodwitError('CONNECTION_LOST', `the gateway ended the stream before ${name}`)
  if (frame.type === FRAME.ERROR) throw fromBody(checkJson(ErrorBody, frame.payload, { what: 'ERROR frame' }))
  return checkJson(schema, frame.payload, { what: `${name} frame` })
}
