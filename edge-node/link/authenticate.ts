// The node's half of the mutual authentication on the hop: HELLO -> CHALLENGE -> AUTH -> WELCOME
// (docs/reference/protocol.md). Enters: a new connection. Leaves: the framed control stream after WELCOME, or a coded
// error (CERT_*, AUTH_FAILED, VERSION_UNSUPPORTED, or the gateway's ERROR frame). Always holds: the node signs only
// after the gateway has proved, over this connection (its binding is signed), that its certificate is of the trusted
// root.
import { type Certificate, type Revocations, verifyCertificate } from '../../crypto/certificate.ts'
import { type LinkIdentity, type LinkTranscript, signLink, verifyLink } from '../../crypto/link-auth.ts'
import type { Clock } from '../../ops/clock.ts'
import { unixSeconds } from '../../ops/clock.ts'
import { createFrameStream, type FrameStream } from '../../transport/frames.ts'
import type { Connection } from '../../transport/types.ts'
import { Challenge, ErrorBody, type Hello, NONCE_BYTES, type Purpose, Welcome } from '../../wire/control.ts'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import { check, checkJson, parseJson, toJson, type z } from '../../wire/schema.ts'
import { allow, FRAME, type FrameName } from '../../wire/types.ts'
import { checkVersion, VERSIONS, type VersionRange, type Versions, versionFields, versionsIn } from '../../wire/versions.ts'

export type NodeAuthentication = {
  connection: Connection
  purpose: Purpose
  incarnation: number
  identity: LinkIdentity
  rootPublic: Uint8Array
  /** A gateway whose certificate is on this list is rejected (CERT_REVOKED). */
  revocations?: (() => Revocations | undefined) | undefined
  /** The only accepted gateway; absent: any gateway of the root. */
  gatewayId?: string | undefined
  /** Default: the range of this release. */
  versions?: Versions | undefined
  clock: Clock
  random: (bytes: number) => Uint8Array
}

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64')
const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))

/** The gateway's certificate, if it is valid now. CERT_*, AUTH_FAILED. */
export function verifyGateway(
  bytes: Uint8Array,
  { rootPublic, clock, gatewayId, revocations }: Pick<NodeAuthentication, 'rootPublic' | 'clock' | 'gatewayId' | 'revocations'>,
): Certificate {
  const list = revocations?.()
  return verifyCertificate(bytes, {
    rootPublic,
    now: unixSeconds(clock),
    role: 'gateway',
    ...(gatewayId === undefined ? {} : { id: gatewayId }),
    ...(list === undefined ? {} : { revocations: list }),
  })
}

type Authenticated = { frames: FrameStream; welcome: Welcome; gatewayCertificate: Uint8Array }

/**
 * Opens the control stream and authenticates both sides. The caller sets the deadline and closes the connection on
 * failure.
 */
export async function authenticateToGateway(options: NodeAuthentication): Promise<Authenticated> {
  const { connection, purpose, incarnation, identity, random, versions = VERSIONS } = options
  const frames = createFrameStream(await connection.openStream())
  const nonce = random(NONCE_BYTES)
  const hello: Hello = {
    ...versionFields(versions.link),
    purpose,
    incarnation,
    nonce: base64(nonce),
    certificate: base64(identity.certificate),
  }
  const greeting = toJson(hello)
  await frames.write(FRAME.HELLO, greeting)

  const challenge = await expectChallenge(frames, versions.link)
  const transcript: LinkTranscript = {
    version: challenge.version,
    nodeNonce: nonce,
    gatewayNonce: bytesOf(challenge.nonce),
    nodeCertificate: identity.certificate,
    gatewayCertificate: bytesOf(challenge.certificate),
    binding: connection.binding,
    greeting,
  }
  const certificate = verifyGateway(transcript.gatewayCertificate, options)
  verifyLink('gateway', certificate, transcript, bytesOf(challenge.signature))

  await frames.write(FRAME.AUTH, toJson({ signature: base64(signLink('node', identity, transcript)) }))
  return { frames, welcome: await expect(frames, 'WELCOME', Welcome), gatewayCertificate: transcript.gatewayCertificate }
}

/** CHALLENGE. Its version is read first, because another version may have another format. */
export async function expectChallenge(frames: FrameStream, range: VersionRange): Promise<Challenge> {
  const what = 'CHALLENGE frame'
  const value = parseJson(await expectFrame(frames, 'CHALLENGE'), { what })
  const { min: version } = versionsIn(value, what)
  checkVersion('link', { by: 'the gateway', version }, { name: 'the node', range })
  return check(Challenge, value, { what })
}

/** The next frame, which must be of this type; an ERROR frame is thrown as its error. */
export async function expect<S extends z.ZodType>(frames: FrameStream, name: FrameName, schema: S): Promise<z.output<S>> {
  return checkJson(schema, await expectFrame(frames, name), { what: `${name} frame` })
}

async function expectFrame(frames: FrameStream, name: FrameName): Promise<Uint8Array> {
  const frame = await frames.next(allow(name, 'ERROR'))
  if (frame === null) throw new GodwitError('CONNECTION_LOST', `the gateway ended the stream before ${name}`)
  if (frame.type === FRAME.ERROR) throw fromBody(checkJson(ErrorBody, frame.payload, { what: 'ERROR frame' }))
  return frame.payload
}
