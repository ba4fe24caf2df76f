// Enrolment from the site's side: shows the token and the signed request, then asks until the operator has issued the certificate.
// Enters: how to dial, token, request. Leaves: the certificate's bytes.
// Always holds: what comes back is believed only if our root signed it for the very keys of the request; the gateway itself is not proved here
// (this site has no certificate yet), so the operator compares the request's fingerprint with the one that the site shows.
import { type Certificate, verifyCertificate, verifyRequest } from '../../crypto/certificate.ts'
import { type Clock, systemClock, unixSeconds } from '../../ops/clock.ts'
import { sleep, within } from '../../ops/deadline.ts'
import { createFrameStream } from '../../transport/frames.ts'
import { EnrolReply } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { toJson } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import { expect } from './authenticate.ts'
import type { Dial } from './connection.ts'

export type EnrolOptions = {
  dial: Dial
  token: string
  request: Uint8Array
  rootPublic: Uint8Array
  /** Called once, when the gateway has taken the request. */
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

async function ask({ dial, token, request, signal }: EnrolOptions): Promise<EnrolReply> {
  const { connection } = await dial({ signal })
  try {
    const frames = createFrameStream(await connection.openStream())
    await frames.write(FRAME.ENROL, toJson({ token, request: Buffer.from(request).toString('base64') }))
    return await within(expect(frames, 'ENROL_REPLY', EnrolReply), { ms: REPLY_MS, what: 'enrolment', signal })
  } finally {
    connection.close('asked').catch(() => {})
  }
}

function believe(bytes: Uint8Array, { request, rootPublic, clock = systemClock }: EnrolOptions) {
  const claims = verifyRequest(request)
  const certificate = verifyCertificate(bytes, { rootPublic, now: unixSeconds(clock), role: claims.role, id: claims.id })
  const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0
  if (!same(certificate.signPublic, claims.signPublic) || !same(certificate.boxPublic, claims.boxPublic))
    throw new GodwitError('AUTH_FAILED', 'the certificate that came is for other keys than this request')
  return { bytes, certificate }
}
