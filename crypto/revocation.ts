// Revocation lists: numbered, dated, signed by the root; each replaces the one before. The gateway forwards them: it
// can withhold a list but not forge one. A list older than its maximum age is rejected, so withholding stops migrations
// instead of admitting a revoked site.
import { GodwitError } from '../wire/errors.ts'
import { ID_PATTERN } from '../wire/types.ts'
import { concatBytes, fromHex, Reader, toHex, u32, u64, utf8 } from './bytes.ts'
import { KEY_ID_BYTES, keyId } from './identity.ts'
import type { Root } from './root.ts'
import { SIGNATURE_BYTES, signMessage, verifyMessage } from './signature.ts'
import { equalBytes } from './sodium.ts'

export type Revocations = {
  /** Increases by at least one with every list. */
  number: number
  /** Unix seconds. */
  issuedAt: number
  /** Serials of revoked certificates, 32 hex digits each. */
  serials: ReadonlySet<string>
}

const LABEL = 'godwit/1 revocations'
const MAGIC = utf8('GWL1')
const SERIAL_BYTES = 16
/** Keeps a list under the 64 KiB of the frames that carry it. */
const REVOKED_SERIALS_MAX = 2048
/** How far the date of a list may be ahead of this clock. */
const CLOCK_SKEW_SECONDS = 300

/** Canonical bytes (serials sorted, each once) and the root's signature. */
export function issueRevocations(root: Root, list: { number: number; issuedAt: number; serials: Iterable<string> }): Uint8Array {
  const serials = [...new Set(list.serials)].sort()
  if (serials.length > REVOKED_SERIALS_MAX) throw new TypeError(`more than ${REVOKED_SERIALS_MAX} serials`)
  if (!serials.every(serial => ID_PATTERN.test(serial))) throw new TypeError('a serial is 32 hex digits')
  const body = concatBytes(
    MAGIC,
    keyId(root.signPublic),
    u64(list.number),
    u64(list.issuedAt),
    u32(serials.length),
    ...serials.map(fromHex),
  )
  return concatBytes(body, signMessage(root.signSecret, LABEL, body))
}

/**
 * The list, if the trusted root signed it, it is at most `maxAgeSeconds` old and not older than the known one
 * (`newerThan` is its number; the same number is accepted again). Throws CERT_MALFORMED, CERT_UNTRUSTED,
 * REVOCATION_STALE.
 */
export function verifyRevocations(
  bytes: Uint8Array,
  options: { rootPublic: Uint8Array; now: number; maxAgeSeconds: number; newerThan?: number },
): Revocations {
  const { list, body, signature, issuerId } = decode(bytes)
  if (!equalBytes(issuerId, keyId(options.rootPublic)) || !verifyMessage(options.rootPublic, LABEL, body, signature)) {
    throw new GodwitError('CERT_UNTRUSTED', 'the revocation list is not signed by the trusted root')
  }
  const age = options.now - list.issuedAt
  if (age > options.maxAgeSeconds)
    throw new GodwitError('REVOCATION_STALE', `revocation list ${list.number} is ${age} s old, the limit is ${options.maxAgeSeconds} s`)
  if (age < -CLOCK_SKEW_SECONDS)
    throw new GodwitError('REVOCATION_STALE', `revocation list ${list.number} is dated ${-age} s ahead: check the clock`)
  if (options.newerThan !== undefined && list.number < options.newerThan) {
    throw new GodwitError('REVOCATION_STALE', `revocation list ${list.number} is older than the current list ${options.newerThan}`)
  }
  return list
}

function decode(bytes: Uint8Array): { list: Revocations; body: Uint8Array; signature: Uint8Array; issuerId: Uint8Array } {
  try {
    const reader = new Reader(bytes)
    if (!equalBytes(reader.take(MAGIC.length), MAGIC)) throw new RangeError('not a revocation list')
    const issuerId = reader.take(KEY_ID_BYTES)
    const number = reader.number(8)
    const issuedAt = reader.number(8)
    const count = reader.number(4)
    if (count > REVOKED_SERIALS_MAX) throw new RangeError('too many serials')
    const serials = new Set<string>()
    let last = ''
    for (let i = 0; i < count; i++) {
      const serial = toHex(reader.take(SERIAL_BYTES))
      if (serial <= last) throw new RangeError('serials out of order')
      serials.add(serial)
      last = serial
    }
    const body = bytes.slice(0, reader.offset)
    const signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return { list: { number, issuedAt, serials }, body, signature, issuerId }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error
    throw new GodwitError('CERT_MALFORMED', `the revocation list cannot be read: ${error.message}`, { cause: error })
  }
}
