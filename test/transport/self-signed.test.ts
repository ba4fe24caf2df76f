import { createHash, createPrivateKey, X509Certificate } from 'node:crypto'
import { createServerCertificate } from '../../transport/self-signed.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('self-signed certificate', { ms: 5_000 })

test('the certificate parses, verifies itself and is valid for less than 14 days around now', () => {
  for (let i = 0; i < 20; i++) {
    const now = Date.UTC(2026, 10, 21)
    const made = createServerCertificate(now)
    const read = new X509Certificate(made.certificatePem)
    assert.ok(read.verify(read.publicKey))
    assert.ok(read.checkPrivateKey(createPrivateKey(made.keyPem)))
    assert.is(read.subject, 'CN=godwit')
    assert.ok(read.checkHost('localhost'))
    assert.is(read.publicKey.asymmetricKeyDetails?.namedCurve, 'prime256v1')
    assert.is(Date.parse(read.validTo), made.notAfterMs)
    assert.ok(Date.parse(read.validFrom) < now && Date.parse(read.validTo) > now)
    assert.ok(Date.parse(read.validTo) - Date.parse(read.validFrom) < 14 * 86_400_000)
    assert.equal(createHash('sha256').update(read.raw).digest(), made.hash)
  }
})

test('every certificate has its own key and serial number', () => {
  assert.not.equal(createServerCertificate().hash, createServerCertificate().hash)
})

test.run()
