// Fencing statements: what they say comes back, and nothing else does.
import { createRoot } from '../../crypto/certificate.ts'
import { type Fencing, issueFencing, verifyFencing } from '../../crypto/fencing.ts'
import { loadSodium } from '../../crypto/sodium.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('crypto/fencing')
await loadSodium()

const root = createRoot()
const claims: Fencing = { site: 'b', vm: 'web-1', epoch: 7, for: 'a', by: 'Ada pulled the plug \u2713', issuedAt: 1_800_000_000 }
const bytes = issueFencing(root, claims)
const good = { rootPublic: root.signPublic }

test('a statement comes back as it was issued, in one encoding', () => {
  assert.equal(verifyFencing(bytes, good), claims)
  assert.equal(issueFencing(root, claims), bytes)
})

test('a statement of another root is invalid, also when it names our root', async () => {
  const other = createRoot()
  assert.is(await codeOf(() => verifyFencing(bytes, { rootPublic: other.signPublic })), 'FENCING_INVALID')
  const forged = issueFencing({ signPublic: root.signPublic, signSecret: other.signSecret }, claims)
  assert.is(await codeOf(() => verifyFencing(forged, good)), 'FENCING_INVALID')
})

test('every bit flip, every truncation and anything behind it makes it invalid', async () => {
  for (let at = 0; at < bytes.length; at++) {
    const flipped = bytes.slice()
    flipped[at]! ^= 1 << (at % 8)
    assert.is(await codeOf(() => verifyFencing(flipped, good)), 'FENCING_INVALID', `byte ${at}`)
    assert.is(await codeOf(() => verifyFencing(bytes.subarray(0, at), good)), 'FENCING_INVALID', `cut at ${at}`)
  }
  assert.is(await codeOf(() => verifyFencing(Buffer.concat([bytes, Buffer.of(0)]), good)), 'FENCING_INVALID')
})

test('claims that say nothing are not signed', () => {
  for (const wrong of [{ site: 'a' }, { vm: '../x' }, { for: '' }, { by: ' ' }, { by: 'x'.repeat(513) }])
    assert.throws(
      () => issueFencing(root, { ...claims, ...wrong }),
      (error: unknown) => error instanceof TypeError,
    )
})

test.run()
