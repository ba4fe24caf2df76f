import { createEnrolmentToken, hashEnrolmentToken, matchesEnrolmentToken } from '../../crypto/enrolment.ts'
import { loadSodium } from '../../crypto/sodium.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('crypto/enrolment')
await loadSodium()

test('a token has 160 bits, and no two are alike', () => {
  const tokens = new Set(Array.from({ length: 100 }, createEnrolmentToken))
  assert.is(tokens.size, 100)
  for (const token of tokens) assert.match(token, /^gwt-[0-9a-hjkmnp-tv-z]{32}$/)
})

test('a token is known by its hash alone', () => {
  const token = createEnrolmentToken()
  const hash = hashEnrolmentToken(token)
  assert.match(hash, /^[0-9a-f]{64}$/)
  assert.ok(matchesEnrolmentToken(token, hash))
  assert.not(matchesEnrolmentToken(createEnrolmentToken(), hash))
  assert.not(matchesEnrolmentToken('', hash))
  assert.not(matchesEnrolmentToken(token, ''))
  assert.not(matchesEnrolmentToken(hash, hash))
})

test.run()
