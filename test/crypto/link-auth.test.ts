import { createRoot, issueCertificate, newSerial, type SubjectRole, verifyCertificate } from '../../crypto/certificate.ts'
import { generateSiteKeys } from '../../crypto/identity.ts'
import { type LinkTranscript, signLink, verifyLink } from '../../crypto/link-auth.ts'
import { loadSodium, randomBytes } from '../../crypto/sodium.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('crypto/link-auth')
await loadSodium()

const NOW = 1_800_000_000
const root = createRoot()

function party(role: SubjectRole, id: string) {
  const keys = generateSiteKeys()
  const certificate = issueCertificate(root, { role, id, ...keys, notBefore: NOW, notAfter: NOW + 10, serial: newSerial() })
  return { keys, certificate, verified: verifyCertificate(certificate, { rootPublic: root.signPublic, now: NOW }) }
}

const node = party('site', 'oslo-1')
const gateway = party('gateway', 'hub')
const transcript: LinkTranscript = {
  version: 1,
  nodeNonce: randomBytes(32),
  gatewayNonce: randomBytes(32),
  nodeCertificate: node.certificate,
  gatewayCertificate: gateway.certificate,
  binding: randomBytes(32),
}

test('both sides accept each other over the same transcript', () => {
  verifyLink('node', node.verified, transcript, signLink('node', node, transcript))
  verifyLink('gateway', gateway.verified, transcript, signLink('gateway', gateway, transcript))
})

test('a transcript that differs in anything is AUTH_FAILED', async () => {
  const signature = signLink('node', node, transcript)
  const others: Partial<LinkTranscript>[] = [
    { version: 2 },
    { nodeNonce: randomBytes(32) },
    { gatewayNonce: randomBytes(32) },
    { nodeNonce: transcript.gatewayNonce, gatewayNonce: transcript.nodeNonce },
    { gatewayCertificate: party('gateway', 'hub').certificate },
    { binding: randomBytes(32) },
    { greeting: Uint8Array.from([1]) },
    { nodeNonce: randomBytes(31) },
  ]
  for (const other of others)
    assert.is(await codeOf(() => verifyLink('node', node.verified, { ...transcript, ...other }, signature)), 'AUTH_FAILED')
})

test('a signature reflected to its maker is AUTH_FAILED', async () => {
  const signature = signLink('node', node, transcript)
  assert.is(await codeOf(() => verifyLink('gateway', gateway.verified, transcript, signature)), 'AUTH_FAILED')
  assert.is(await codeOf(() => verifyLink('gateway', node.verified, transcript, signature)), 'AUTH_FAILED')
})

test('a site cannot be the gateway of a link, nor a gateway the node', async () => {
  const evil = party('site', 'evil')
  const swapped = { ...transcript, gatewayCertificate: evil.certificate }
  assert.is(await codeOf(() => verifyLink('gateway', evil.verified, swapped, signLink('gateway', evil, swapped))), 'AUTH_FAILED')
  const turned = { ...transcript, nodeCertificate: gateway.certificate }
  assert.is(await codeOf(() => verifyLink('node', gateway.verified, turned, signLink('node', gateway, turned))), 'AUTH_FAILED')
})

test("a certificate stolen without its key, or another's, is AUTH_FAILED", async () => {
  const thief = { keys: generateSiteKeys(), certificate: node.certificate }
  assert.is(await codeOf(() => verifyLink('node', node.verified, transcript, signLink('node', thief, transcript))), 'AUTH_FAILED')
  const other = party('site', 'oslo-2')
  const shown = { ...transcript, nodeCertificate: other.certificate }
  assert.is(await codeOf(() => verifyLink('node', node.verified, shown, signLink('node', other, shown))), 'AUTH_FAILED')
})

test('a flipped bit or a wrong length of the signature is AUTH_FAILED', async () => {
  const signature = signLink('node', node, transcript)
  for (let bit = 0; bit < signature.length * 8; bit++) {
    const altered = signature.slice()
    altered[bit >> 3]! ^= 1 << (bit & 7)
    assert.is(await codeOf(() => verifyLink('node', node.verified, transcript, altered)), 'AUTH_FAILED')
  }
  for (const length of [0, 63, 65])
    assert.is(await codeOf(() => verifyLink('node', node.verified, transcript, new Uint8Array(length))), 'AUTH_FAILED')
})

test.run()
