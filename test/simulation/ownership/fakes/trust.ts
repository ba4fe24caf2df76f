// identity/trust.ts in the simulation: every certificate that the root of the world has signed is good, and there is a
// fresh list.
import { decodeCertificate } from '../../../../crypto/certificate.ts'

export async function openTrust() {
  return {
    list: () => undefined,
    signed: () => undefined,
    ageSeconds: () => 0,
    requireFresh() {},
    verify: (certificate: Uint8Array) => decodeCertificate(certificate),
    offer: async () => 0,
    refresh: async () => {},
    settled: async () => {},
    watch: () => () => {},
    close: async () => {},
  }
}
