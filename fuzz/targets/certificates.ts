// crypto/certificate.ts, request.ts, revocation.ts: unauthenticated bytes, and the same bytes signed by a root by
// mistake, or by an unknown key.

import { concatBytes } from '../../crypto/bytes.ts'
import {
  createRequest,
  decodeCertificate,
  issueCertificate,
  issueRevocations,
  verifyCertificate,
  verifyRequest,
  verifyRevocations,
} from '../../crypto/certificate.ts'
import { loadSodium } from '../../crypto/identity.ts'
import { SIGNATURE_BYTES, signMessage } from '../../crypto/signature.ts'
import { fixedKeys, fixedRoot } from '../keys.ts'
import { demand, sameBytes, type Target } from '../target.ts'

const NOW = 1_800_000_000
const SERIAL = 'a1'.repeat(16)
const material = () => ({ root: fixedRoot(), site: fixedKeys(2) })
let keys: ReturnType<typeof material>

/** Preparation of an input: unchanged, or signed again so that its content is parsed. */
const DRESS = ['bare', 'signed'] as const
const KINDS = ['certificate', 'request', 'revocations'] as const

function dress(kind: (typeof KINDS)[number], how: (typeof DRESS)[number], bytes: Uint8Array): Uint8Array {
  if (how === 'bare') return bytes
  const body = bytes.subarray(0, Math.max(0, bytes.length - SIGNATURE_BYTES))
  const secret = kind === 'request' ? keys.site.signSecret : keys.root.signSecret
  return concatBytes(body, signMessage(secret, `godwit/1 ${kind}`, body))
}

const CHECKS: Record<(typeof KINDS)[number], (bytes: Uint8Array) => void> = {
  certificate(bytes) {
    const shown = decodeCertificate(bytes)
    const revocations = { number: 1, issuedAt: NOW, serials: new Set(['b'.repeat(32)]) }
    const certificate = verifyCertificate(bytes, { rootPublic: keys.root.signPublic, now: NOW, role: 'site', revocations })
    demand(certificate.serial === shown.serial, 'two readings')
    demand(sameBytes(issueCertificate(keys.root, certificate), bytes), 'one certificate has two encodings')
  },
  request(bytes) {
    const { role, id, ...rest } = verifyRequest(bytes)
    if (sameBytes(rest.signPublic, keys.site.signPublic))
      demand(sameBytes(createRequest({ ...keys.site, ...rest }, { role, id }), bytes), 'one request has two encodings')
  },
  revocations(bytes) {
    const list = verifyRevocations(bytes, { rootPublic: keys.root.signPublic, now: NOW, maxAgeSeconds: 3600, newerThan: 1 })
    demand(sameBytes(issueRevocations(keys.root, list), bytes), 'one list has two encodings')
  },
}

const inputOf = (kind: number, how: number, bytes: Uint8Array) => concatBytes(Uint8Array.of(kind, how), bytes)

export const certificates: Target = {
  name: 'certificates',
  what: 'crypto/certificate.ts, request.ts, revocation.ts, altered, and signed again after the change',
  codes: ['CERT_MALFORMED', 'CERT_UNTRUSTED', 'CERT_EXPIRED', 'CERT_REVOKED', 'AUTH_FAILED', 'REVOCATION_STALE'],
  testRuns: 2500,
  bytesMax: 2048,
  words: ['GWC1', 'GWR1', 'GWL1', '\ufeff', Uint8Array.of(0, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), Uint8Array.of(0, 0, 8, 0)],
  async setup() {
    await loadSodium()
    keys = material()
  },
  seeds() {
    const claims = { role: 'site' as const, id: 'oslo', notBefore: NOW - 10, notAfter: NOW + 10, serial: SERIAL }
    const certificate = issueCertificate(keys.root, { ...claims, signPublic: keys.site.signPublic, boxPublic: keys.site.boxPublic })
    const list = (serials: string[]) => issueRevocations(keys.root, { number: 5, issuedAt: NOW - 60, serials })
    return [0, 1].flatMap(how => [
      inputOf(0, how, certificate),
      inputOf(1, how, createRequest(keys.site, { role: 'gateway', id: 'hub' })),
      inputOf(2, how, list([])),
      inputOf(2, how, list(['0'.repeat(32), 'b'.repeat(32), SERIAL])),
    ])
  },
  hostile: () => ({
    'four billion serials': inputOf(
      2,
      1,
      concatBytes(Buffer.from('GWL1'), new Uint8Array(32), Uint8Array.of(255, 255, 255, 255), new Uint8Array(64)),
    ),
    'a megabyte': inputOf(0, 0, concatBytes(Buffer.from('GWC1'), new Uint8Array(1024 * 1024))),
  }),
  run(input) {
    const kind = KINDS[(input[0] ?? 0) % KINDS.length]!
    const how = DRESS[(input[1] ?? 0) % DRESS.length]!
    CHECKS[kind](dress(kind, how, input.subarray(2)))
  },
}
