import {
  createRoot,
  decodeCertificate,
  decodeRoot,
  encodeRoot,
  issueCertificate,
  newSerial,
  verifyCertificate,
} from '../../crypto/certificate.ts'
import { decodeKeys, encodeKeys, fingerprint, generateSiteKeys } from '../../crypto/identity.ts'
import { createRequest, verifyRequest } from '../../crypto/request.ts'
import { issueRevocations, verifyRevocations } from '../../crypto/revocation.ts'
import { loadSodium } from '../../crypto/sodium.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('crypto/certificate')
await loadSodium()

const root = createRoot()
const keys = generateSiteKeys()
const NOW = 1_800_000_000
const serial = newSerial()
const claims = { role: 'site', id: 'oslo-1', ...keys, notBefore: NOW - 10, notAfter: NOW + 10, serial } as const
const bytes = issueCertificate(root, claims)
const good = { rootPublic: root.signPublic, now: NOW }

test('a certificate comes back as it was issued', () => {
  const certificate = verifyCertificate(bytes, { ...good, role: 'site', id: 'oslo-1' })
  assert.is(certificate.id, 'oslo-1')
  assert.is(certificate.role, 'site')
  assert.is(certificate.serial, serial)
  assert.is(certificate.issuer, fingerprint(root.signPublic))
  assert.equal(certificate.boxPublic, keys.boxPublic)
  assert.equal(certificate.signPublic, keys.signPublic)
  assert.equal(decodeCertificate(bytes), certificate)
})

test('a certificate is valid from its first to its last second and not outside', async () => {
  for (const now of [NOW - 10, NOW + 10]) verifyCertificate(bytes, { ...good, now })
  for (const now of [NOW - 11, NOW + 11]) assert.is(await codeOf(() => verifyCertificate(bytes, { ...good, now })), 'CERT_EXPIRED')
})

test('a certificate of another root is CERT_UNTRUSTED, also when it names our root', async () => {
  const other = createRoot()
  assert.is(await codeOf(() => verifyCertificate(bytes, { ...good, rootPublic: other.signPublic })), 'CERT_UNTRUSTED')
  const forged = issueCertificate({ signPublic: root.signPublic, signSecret: other.signSecret }, claims)
  assert.is(await codeOf(() => verifyCertificate(forged, good)), 'CERT_UNTRUSTED')
})

test('a good certificate of another role or name is AUTH_FAILED', async () => {
  assert.is(await codeOf(() => verifyCertificate(bytes, { ...good, role: 'gateway' })), 'AUTH_FAILED')
  assert.is(await codeOf(() => verifyCertificate(bytes, { ...good, id: 'oslo-2' })), 'AUTH_FAILED')
})

test('a revoked certificate is CERT_REVOKED', async () => {
  const revocations = { number: 1, issuedAt: NOW, serials: new Set([serial]) }
  assert.is(await codeOf(() => verifyCertificate(bytes, { ...good, revocations })), 'CERT_REVOKED')
  verifyCertificate(bytes, { ...good, revocations: { ...revocations, serials: new Set([newSerial()]) } })
})

test('a flipped bit anywhere makes a certificate worthless', async () => {
  for (let bit = 0; bit < bytes.length * 8; bit++) {
    const altered = bytes.slice()
    altered[bit >> 3]! ^= 1 << (bit & 7)
    const code = await codeOf(() => verifyCertificate(altered, good))
    assert.ok(code === 'CERT_MALFORMED' || code === 'CERT_UNTRUSTED', `bit ${bit}: ${code}`)
  }
})

test('a certificate cut short or with a byte too many is CERT_MALFORMED', async () => {
  for (let cut = 0; cut < bytes.length; cut++)
    assert.is(await codeOf(() => verifyCertificate(bytes.subarray(0, cut), good)), 'CERT_MALFORMED')
  assert.is(await codeOf(() => verifyCertificate(Uint8Array.from([...bytes, 0]), good)), 'CERT_MALFORMED')
})

test('names that are no names are not issued', () => {
  for (const id of ['', 'Oslo', 'a/b', '../x', 'a'.repeat(65), 'ø'])
    assert.throws(() => issueCertificate(root, { ...claims, id }), TypeError)
  assert.throws(() => issueCertificate(root, { ...claims, serial: 'x' }), TypeError)
  assert.throws(() => issueCertificate(root, { ...claims, notAfter: NOW - 11 }), TypeError)
})

test('a request proves possession of the key it names', async () => {
  const request = createRequest(keys, { role: 'site', id: 'oslo-1' })
  assert.equal(verifyRequest(request), { role: 'site', id: 'oslo-1', signPublic: keys.signPublic, boxPublic: keys.boxPublic })
  for (let bit = 0; bit < request.length * 8; bit++) {
    const altered = request.slice()
    altered[bit >> 3]! ^= 1 << (bit & 7)
    const code = await codeOf(() => verifyRequest(altered))
    assert.ok(code === 'CERT_MALFORMED' || code === 'AUTH_FAILED', `bit ${bit}: ${code}`)
  }
  for (let cut = 0; cut < request.length; cut++) assert.is(await codeOf(() => verifyRequest(request.subarray(0, cut))), 'CERT_MALFORMED')
})

test('a certificate is no request and a request no certificate', async () => {
  assert.is(await codeOf(() => verifyRequest(bytes)), 'CERT_MALFORMED')
  assert.is(await codeOf(() => verifyCertificate(createRequest(keys, { role: 'site', id: 'a' }), good)), 'CERT_MALFORMED')
})

test('a revocation list is signed, numbered and ages', async () => {
  const other = newSerial()
  const list = issueRevocations(root, { number: 7, issuedAt: NOW, serials: [serial, other, serial] })
  const options = { rootPublic: root.signPublic, now: NOW + 60, maxAgeSeconds: 60 }
  const read = verifyRevocations(list, { ...options, newerThan: 7 })
  assert.is(read.number, 7)
  assert.equal([...read.serials].sort(), [serial, other].sort())
  assert.is(await codeOf(() => verifyRevocations(list, { ...options, now: NOW + 61 })), 'REVOCATION_STALE')
  assert.is(await codeOf(() => verifyRevocations(list, { ...options, now: NOW - 301 })), 'REVOCATION_STALE')
  assert.is(await codeOf(() => verifyRevocations(list, { ...options, newerThan: 8 })), 'REVOCATION_STALE')
  assert.is(await codeOf(() => verifyRevocations(list, { ...options, rootPublic: createRoot().signPublic })), 'CERT_UNTRUSTED')
  for (let bit = 0; bit < list.length * 8; bit++) {
    const altered = list.slice()
    altered[bit >> 3]! ^= 1 << (bit & 7)
    const code = await codeOf(() => verifyRevocations(altered, options))
    assert.ok(code === 'CERT_MALFORMED' || code === 'CERT_UNTRUSTED', `bit ${bit}: ${code}`)
  }
  for (let cut = 0; cut < list.length; cut++)
    assert.is(await codeOf(() => verifyRevocations(list.subarray(0, cut), options)), 'CERT_MALFORMED')
})

test('keys survive their file', async () => {
  assert.equal(decodeKeys(encodeKeys(keys)), keys)
  assert.equal(decodeRoot(encodeRoot(root)), root)
  assert.is(await codeOf(() => decodeRoot(encodeKeys(keys))), 'CONFIG_INVALID')
  for (const text of ['', '{}', 'null', encodeKeys(keys).replace('"box": "', '"box": "!'), encodeKeys(keys).replace('1', '2')]) {
    assert.is(await codeOf(() => decodeKeys(text)), 'CONFIG_INVALID')
  }
})

test('a fingerprint is five groups of five that are easy to say', () => {
  assert.match(fingerprint(keys.signPublic), /^[0-9a-hjkmnp-tv-z]{5}(-[0-9a-hjkmnp-tv-z]{5}){4}$/)
  assert.is.not(fingerprint(keys.signPublic), fingerprint(keys.boxPublic))
})

test.run()
