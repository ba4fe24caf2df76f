// Enrolment: a token lets one site hand in one certificate request; the operator signs it offline; the site fetches the certificate.
// Enters: tokens wanted by the operator, ENROL frames of strangers, certificates from the operator. Leaves: pending | issued.
// Always holds: the token is kept as a hash and lives an hour at most; the first request that comes with it is the only one it serves; the
// gateway cannot sign, so it cannot make itself a site: it only checks that what the operator uploads is our root's, for that request's keys.
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
import type { Records, StoredEnrolment } from '../store/records.ts'

export type Enrolments = {
  /** A new token for a site; an earlier one for the same site is void. */
  createToken(site: string): Promise<TokenReply>
  /** A site's ENROL frame. TOKEN_INVALID, CERT_MALFORMED, AUTH_FAILED. */
  ask(enrol: Enrol): Promise<EnrolReply>
  list(): Promise<EnrolmentView[]>
  /** The operator's certificate for a pending request. SITE_UNKNOWN, CERT_*, AUTH_FAILED. */
  issue(site: string, certificate: string): Promise<void>
}

const bytesOf = (text: string) => new Uint8Array(Buffer.from(text, 'base64'))
const sameBytes = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0

export function createEnrolments({ records, rootPublic, clock }: { records: Records; rootPublic: Uint8Array; clock: Clock }): Enrolments {
  // One at a time: two requests with one token must not both be the first.
  let turn: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const mine = turn.then(work)
    turn = mine.catch(() => {})
    return mine
  }

  async function ask({ token, request }: Enrol): Promise<EnrolReply> {
    const claims = verifyRequest(bytesOf(request))
    const found = claims.role === 'site' ? await records.enrolment(claims.id) : undefined
    // One answer for every way of being wrong: a stranger learns nothing about which sites are awaited.
    if (
      !found ||
      !matchesEnrolmentToken(token, found.tokenHash) ||
      clock.now() >= found.expiresAt ||
      (found.request ?? request) !== request
    )
      throw new GodwitError('TOKEN_INVALID')
    if (found.certificate) return { status: 'issued', certificate: found.certificate }
    if (!found.request) await records.saveEnrolment({ ...found, request })
    return { status: 'pending' }
  }

  async function issue(site: string, certificate: string): Promise<void> {
    const found = await records.enrolment(site)
    if (!found?.request) throw new GodwitError('SITE_UNKNOWN', `no request of site '${site}' is pending`)
    const verified = verifyCertificate(bytesOf(certificate), { rootPublic, now: unixSeconds(clock), role: 'site', id: site })
    const claims = verifyRequest(bytesOf(found.request))
    if (!sameBytes(verified.signPublic, claims.signPublic) || !sameBytes(verified.boxPublic, claims.boxPublic))
      throw new GodwitError('AUTH_FAILED', `the certificate is for other keys than the pending request of site ${site}`)
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
      for await (const enrolment of records.enrolments()) views.push(viewOf(enrolment))
      return views
    },
  }
}

function viewOf({ site, request, certificate, expiresAt }: StoredEnrolment): EnrolmentView {
  return {
    site,
    status: certificate ? 'issued' : request ? 'pending' : 'waiting',
    request: request ?? null,
    fingerprint: request ? fingerprint(verifyRequest(bytesOf(request)).signPublic) : null,
    expiresAt,
  }
}
