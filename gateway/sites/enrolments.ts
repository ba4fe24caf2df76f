// Enrolment: with a token one site can submit one certificate request; the operator signs it offline; the site fetches
// the certificate. Enters: tokens for the operator, ENROL frames of unauthenticated peers, certificates from the
// operator. Leaves: pending | issued. Always holds: the token is stored as a hash for an hour at most; it serves only
// the first request with it; the gateway cannot sign, so it cannot create a site: it only checks that the operator's
// certificate is of the trusted root, for the keys of that request.
import { verifyCertificate, verifyRequest } from '../../crypto/certificate.ts'
import {
  createEnrolmentToken,
  ENROLMENT_TOKEN_TTL_MAX_SECONDS,
  fingerprint,
  hashEnrolmentToken,
  matchesEnrolmentToken,
} from '../../crypto/identity.ts'
import { type Clock, unixSeconds } from '../../ops/clock.ts'
import type { EnrolmentView, TokenReply } from '../../wire/admin.ts'
import type { Enrol, EnrolReply } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { EnrolmentAsked } from '../../wire/events.ts'
import type { Records, StoredEnrolment } from '../store/records.ts'

export type Enrolments = {
  /** A new token for a site; it replaces an earlier one. */
  createToken(site: string): Promise<TokenReply>
  /** A site's ENROL frame. TOKEN_INVALID, CERT_MALFORMED, AUTH_FAILED. */
  ask(enrol: Enrol): Promise<EnrolReply>
  list(): Promise<EnrolmentView[]>
  /** The operator's certificate for a pending request. SITE_UNKNOWN, CERT_*, AUTH_FAILED. */
  issue(site: string, certificate: string): Promise<void>
}

const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))
const sameBytes = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

type EnrolmentsOptions = {
  records: Records
  rootPublic: Uint8Array
  clock: Clock
  /** A site has requested its certificate for the first time. */
  onRequest?: (asked: EnrolmentAsked) => void
}

export function createEnrolments({ records, rootPublic, clock, onRequest = () => {} }: EnrolmentsOptions): Enrolments {
  // One request at a time: two requests with one token must not both be the first.
  let turn: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const mine = turn.then(work)
    turn = mine.catch(() => {})
    return mine
  }

  async function ask({ token, request }: Enrol): Promise<EnrolReply> {
    const claims = verifyRequest(bytesOf(request))
    const found = claims.role === 'site' ? await records.enrolment(claims.id) : undefined
    // One answer for every error: an unauthenticated peer learns nothing about expected sites.
    if (
      !found ||
      !matchesEnrolmentToken(token, found.tokenHash) ||
      // A certificate that was approved in time can be fetched later: it is public, and only useful for this request.
      (clock.now() >= found.expiresAt && !found.certificate) ||
      (found.request ?? request) !== request
    )
      throw new GodwitError('TOKEN_INVALID')
    if (found.certificate) return { status: 'issued', certificate: found.certificate }
    if (!found.request) {
      await records.saveEnrolment({ ...found, request })
      onRequest({ site: found.site, fingerprint: fingerprint(claims.signPublic), expiresAt: found.expiresAt })
    }
    return { status: 'pending' }
  }

  async function issue(site: string, certificate: string): Promise<void> {
    const found = await records.enrolment(site)
    if (!found?.request) throw new GodwitError('SITE_UNKNOWN', `site '${site}' has no pending request`)
    // The site could no longer fetch it: report an error here.
    if (clock.now() >= found.expiresAt)
      throw new GodwitError('TOKEN_INVALID', `the token of site ${site} expired at ${new Date(found.expiresAt).toISOString()}`, {
        hint: `create a new token (godwit enrol token ${site}) and repeat godwit enrol request at the site`,
      })
    const verified = verifyCertificate(bytesOf(certificate), { rootPublic, now: unixSeconds(clock), role: 'site', id: site })
    const claims = verifyRequest(bytesOf(found.request))
    if (!sameBytes(verified.signPublic, claims.signPublic) || !sameBytes(verified.boxPublic, claims.boxPublic))
      throw new GodwitError('AUTH_FAILED', `the keys of the certificate differ from the pending request of site ${site}`)
    await records.saveEnrolment({ ...found, certificate })
  }

  return {
    createToken: site =>
      inTurn(async () => {
        const token = createEnrolmentToken()
        const expiresAt = clock.now() + ENROLMENT_TOKEN_TTL_MAX_SECONDS * 1000
        await records.saveEnrolment({ site, tokenHash: hashEnrolmentToken(token), expiresAt })
        return { site, token, expiresAt }
      }),
    ask: enrol => inTurn(() => ask(enrol)),
    issue: (site, certificate) => inTurn(() => issue(site, certificate)),
    async list() {
      const views: EnrolmentView[] = []
      for await (const enrolment of records.enrolments()) views.push(viewOf(enrolment, clock.now()))
      return views
    },
  }
}

function viewOf({ site, request, certificate, expiresAt }: StoredEnrolment, now: number): EnrolmentView {
  return {
    site,
    status: certificate ? 'issued' : now >= expiresAt ? 'lapsed' : request ? 'pending' : 'waiting',
    request: request ?? null,
    fingerprint: request ? fingerprint(verifyRequest(bytesOf(request)).signPublic) : null,
    expiresAt,
  }
}
