// Enrolment tokens: shown once to the person who enrols a site; the gateway stores only a hash. They are for one use
// and short-lived; the gateway enforces both.
import { concatBytes, toHex, utf8 } from './bytes.ts'
import { hashParts } from './hash.ts'
import { equalBytes, randomBytes } from './sodium.ts'

/** Maximum lifetime of a token. */
export const ENROLMENT_TOKEN_TTL_MAX_SECONDS = 3600

const TOKEN_BYTES = 20
const PREFIX = 'gwt-'
const BASE32 = '0123456789abcdefghjkmnpqrstvwxyz'

/** 160 random bits as text: `gwt-` and 32 characters. */
export function createEnrolmentToken(): string {
  const bytes = randomBytes(TOKEN_BYTES)
  let text = ''
  for (let at = 0; at < TOKEN_BYTES; at += 5) {
    let bits = bytes.subarray(at, at + 5).reduce((sum, byte) => sum * 256n + BigInt(byte), 0n)
    let group = ''
    for (let i = 0; i < 8; i++) {
      group = BASE32[Number(bits % 32n)]! + group
      bits /= 32n
    }
    text += group
  }
  return PREFIX + text
}

/** The value to store: hex of BLAKE2b-256. No salt and no slow hash: a token is random, not chosen by a person. */
export const hashEnrolmentToken = (token: string): string => toHex(hashParts('godwit/1 enrolment token', 32, concatBytes(utf8(token))))

/** Whether the token has this hash; in constant time. */
export function matchesEnrolmentToken(token: string, hash: string): boolean {
  return equalBytes(utf8(hashEnrolmentToken(token)), utf8(hash))
}
