// Checks the certificate of another site before anything begins with it. Enters: the certificate as the gateway
// delivered it. Leaves: its claims, or CERT_*.

import { fromBase64 } from '../crypto/bytes.ts'
import type { Certificate } from '../crypto/certificate.ts'
import type { Trust } from './trust.ts'

export type VerifiedSite = { certificate: Certificate; bytes: Uint8Array }

/**
 * Checks the certificate of the site that a plan names, as the node of that site sent it to the gateway, before a
 * migration begins. CERT_*, AUTH_FAILED, REVOCATION_STALE, REVOCATION_MISSING.
 */
export async function verifySite(trust: Trust, site: string, text: string): Promise<VerifiedSite> {
  const bytes = fromBase64(text)
  await trust.settled()
  trust.requireFresh()
  return { bytes, certificate: trust.verify(bytes, { role: 'site', id: site }) }
}
