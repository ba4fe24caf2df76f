// Who may renew a certificate, by rule: who holds its key, while it is good and past half of its life.
import { createRoot, decodeCertificate, type Revocations } from '../../crypto/certificate.ts'
import { generateSiteKeys } from '../../crypto/identity.ts'
import { createRenewal, RENEWAL_AGE_MAX_SECONDS, verifyRenewal } from '../../crypto/renewal.ts'
import { identityOf, NOW_SECONDS as NOW } from '../gateway/fixture.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('crypto: renewal')
const root = createRoot()
const DAY = 86_400
const site = identityOf(root, 'site', 'a', { notBefore: NOW - 20 * DAY, notAfter: NOW + 10 * DAY })
const request = createRenewal(site.keys, site.certificate, NOW)
const verify = (bytes: Uint8Array, more: { now?: number; revocations?: Revocations; rootPublic?: Uint8Array } = {}) =>
  codeOf(() => verifyRenewal(bytes, { rootPublic: root.signPublic, now: NOW, ...more }))

test('the holder of a good certificate past half of its life may have the next', () => {
  const claims = verifyRenewal(request, { rootPublic: root.signPublic, now: NOW })
  assert.equal([claims.role, claims.id], ['site', 'a'])
})

test('nobody else: not with other keys, another root, a revoked or expired certificate, nor an old request', async () => {
  assert.is(await verify(createRenewal(generateSiteKeys(), site.certificate, NOW)), 'AUTH_FAILED')
  assert.is(await verify(request, { rootPublic: createRoot().signPublic }), 'CERT_UNTRUSTED')
  const serials = new Set([decodeCertificate(site.certificate).serial])
  assert.is(await verify(request, { revocations: { number: 1, issuedAt: NOW, serials } }), 'CERT_REVOKED')
  assert.is(await verify(request, { now: NOW + 11 * DAY }), 'CERT_EXPIRED')
  assert.is(await verify(request, { now: NOW + RENEWAL_AGE_MAX_SECONDS + 1 }), 'AUTH_FAILED')
  assert.is(await verify(createRenewal(site.keys, site.certificate, NOW + 3600)), 'AUTH_FAILED')
  const young = identityOf(root, 'site', 'a', { notBefore: NOW - 5 * DAY, notAfter: NOW + 25 * DAY })
  assert.is(await verify(createRenewal(young.keys, young.certificate, NOW)), 'AUTH_FAILED')
})

test('every altered byte and every truncation is refused', async () => {
  for (let at = 0; at < request.length; at++) {
    const altered = request.slice()
    altered[at]! ^= 1
    assert.ok(['CERT_MALFORMED', 'CERT_UNTRUSTED', 'AUTH_FAILED', 'CERT_EXPIRED'].includes(await verify(altered)), `byte ${at}`)
    assert.is(await verify(request.subarray(0, at)), 'CERT_MALFORMED', `${at} bytes`)
  }
})

test.run()
