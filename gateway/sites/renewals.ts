// Renewals of certificates between sites and the root. Enters: requests of sites over their own links (and the
// gateway's own), certificates from the operator. Leaves: pending requests for the operator; issued certificates for
// the sites. Always holds: the gateway cannot sign; it forwards only certificates of the trusted root, for the keys
// that the site proved on its link; at most one request for each name, in memory: a site repeats its request.
import { type Certificate, verifyCertificate } from '../../crypto/certificate.ts'
import { type Clock, unixSeconds } from '../../ops/clock.ts'
import type { RenewalView } from '../../wire/admin.ts'
import type { RenewReply } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'

type Renewal = { claims: Certificate; request: string; askedAt: number; issued?: { text: string; notAfter: number } }

export type Renewals = {
  /** `claims`: the identity that the link proved. */
  ask(claims: Certificate, request: string): RenewReply
  list(): RenewalView[]
  /** The operator's certificate. SITE_UNKNOWN, CERT_*, AUTH_FAILED. */
  issue(role: string, id: string, certificate: string): void
}

/** At most 4096 sites; names without a request for a day are removed first. */
const RENEWALS_MAX = 5000
const FORGET_MS = 86_400_000

export function createRenewals({ rootPublic, clock }: { rootPublic: Uint8Array; clock: Clock }): Renewals {
  const all = new Map<string, Renewal>()
  const keyOf = (role: string, id: string) => `${role} ${id}`
  return {
    ask(claims, request) {
      const key = keyOf(claims.role, claims.id)
      const found = all.get(key)
      if (found?.issued && found.issued.notAfter > claims.notAfter && isOf(found.claims, claims))
        return { status: 'issued', certificate: found.issued.text }
      for (const [old, { askedAt }] of all) if (clock.now() - askedAt > FORGET_MS) all.delete(old)
      if (!all.has(key) && all.size >= RENEWALS_MAX)
        throw new GodwitError('LIMIT_EXCEEDED', `more than ${RENEWALS_MAX} renewals are pending`)
      all.set(key, { claims, request, askedAt: clock.now() })
      return { status: 'pending' }
    },
    list: () =>
      [...all.values()].map(({ claims: { role, id, notAfter }, request, issued }) => ({
        ...{ role, id, request, notAfter },
        status: issued ? 'issued' : 'pending',
      })),
    issue(role, id, certificate) {
      const found = all.get(keyOf(role, id))
      if (!found) throw new GodwitError('SITE_UNKNOWN', `${role} ${id} has no pending renewal`)
      const bytes = new Uint8Array(Buffer.from(certificate, 'base64'))
      const claims = verifyCertificate(bytes, { rootPublic, now: unixSeconds(clock), role: found.claims.role, id })
      if (!isOf(claims, found.claims))
        throw new GodwitError('AUTH_FAILED', `the keys of the certificate differ from those of ${role} ${id}`)
      found.issued = { text: certificate, notAfter: claims.notAfter }
    },
  }
}

const isOf = (a: Certificate, b: Certificate): boolean =>
  Buffer.compare(a.signPublic, b.signPublic) === 0 && Buffer.compare(a.boxPublic, b.boxPublic) === 0
