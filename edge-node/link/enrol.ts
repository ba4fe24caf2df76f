// Enrolment at the site: sends the token and the signed request, then repeats until the operator has issued the
// certificate. Enters: how to connect, token, request. Leaves: the bytes of the certificate. Always holds: the token is
// sent only to a gateway that has proved, over this connection, that its certificate is of the trusted root; a
// certificate counts only if the root signed it for the keys of the request. The operator verifies the site by
// comparing the fingerprint.
import { randomBytes } from 'node:crypto'
import { type Certificate, verifyCertificate, verifyRequest } from '../../crypto/certificate.ts'
import { verifyLink } from '../../crypto/link-auth.ts'
import { type Clock, systemClock, unixSeconds } from '../../ops/clock.ts'
import { sleep, within } from '../../ops/deadline.ts'
import { createFrameStream, type FrameStream } from '../../transport/frames.ts'
import { EnrolReply, NONCE_BYTES } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { toJson } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import { VERSIONS, versionFields } from '../../wire/versions.ts'
import { expect, expectChallenge, verifyGateway } from './authenticate.ts'
import type { Dial } from './connection.ts'

type EnrolOptions = {
  dial: Dial
  token: string
  request: Uint8Array
  rootPublic: Uint8Array
  /** The only accepted gateway; absent: any gateway of the root. */
  gatewayId?: string | undefined
  /** Called once, when the gateway has accepted the request. */
  onPending?: () => void
  pollMs?: number
  clock?: Clock
  signal: AbortSignal
}

const REPLY_MS = 10_000

/** Waits (until `signal`) for the certificate. TOKEN_INVALID, CERT_*, AUTH_FAILED. */
export async function enrol(options: EnrolOptions): Promise<{ bytes: Uint8Array; certificate: Certificate }> {
  const { pollMs = 2_000, signal } = options
  for (let told = false; ; told = true) {
    const reply = await ask(options)
    if (reply.status === 'issued') return believe(new Uint8Array(Buffer.from(reply.certificate, 'base64')), options)
    if (!told) options.onPending?.()
    await sleep(pollMs, signal)
  }
}

async function ask(options: EnrolOptions): Promise<EnrolReply> {
  const { dial, token, request, signal } = options
  const { connection } = await dial({ signal })
  try {
    const frames = createFrameStream(await connection.openStream())
    await within(proveGateway(frames, connection.binding, options), { ms: REPLY_MS, what: 'proof of the gateway', signal })
    await frames.write(FRAME.ENROL, toJson({ token, request: Buffer.from(request).toString('base64') }))
    return await within(expect(frames, 'ENROL_REPLY', EnrolReply), { ms: REPLY_MS, what: 'enrolment', signal })
  } finally {
    connection.close('asked').catch(() => {})
  }
}

/** CERT_*, AUTH_FAILED unless the other end of this connection is a gateway of the trusted root. */
async function proveGateway(frames: FrameStream, binding: Uint8Array, options: EnrolOptions): Promise<void> {
  const { rootPublic, gatewayId, clock = systemClock } = options
  const nodeNonce = new Uint8Array(randomBytes(NONCE_BYTES))
  const greeting = toJson({ ...versionFields(VERSIONS.link), nonce: Buffer.from(nodeNonce).toString('base64') })
  await frames.write(FRAME.ENROL_HELLO, greeting)
  const challenge = await expectChallenge(frames, VERSIONS.link)
  const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))
  const gatewayCertificate = bytesOf(challenge.certificate)
  const certificate = verifyGateway(gatewayCertificate, { rootPublic, clock, gatewayId })
  const nodeCertificate = new Uint8Array()
  const transcript = {
    version: challenge.version,
    nodeNonce,
    gatewayNonce: bytesOf(challenge.nonce),
    nodeCertificate,
    gatewayCertificate,
    binding,
    greeting,
  }
  verifyLink('gateway', certificate, transcript, bytesOf(challenge.signature))
}

function believe(bytes: Uint8Array, { request, rootPublic, clock = systemClock }: EnrolOptions) {
  const claims = verifyRequest(request)
  const certificate = verifyCertificate(bytes, { rootPublic, now: unixSeconds(clock), role: claims.role, id: claims.id })
  const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0
  if (!same(certificate.signPublic, claims.signPublic) || !same(certificate.boxPublic, claims.boxPublic))
    throw new GodwitError('AUTH_FAILED', 'the keys of the received certificate differ from this request')
  return { bytes, certificate }
}
