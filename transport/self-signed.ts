// Ephemeral server certificates for the TLS engines. Enters: a clock. Leaves: a fresh P-256 key and a self-signed
// certificate of ten days (WebTransport's serverCertificateHashes allow a P-256 key and 14 days at most:
// https://www.w3.org/TR/webtransport/#dom-webtransportoptions-servercertificatehashes). No peer verifies these
// certificates by name or issuer: their hash is the channel binding that the layer above signs. So this file writes the
// DER itself, in one fixed form (RFC 5280, section 4.1): @peculiar/x509 2.x does not load without a global reflect
// polyfill.

import { createHash, generateKeyPairSync, randomBytes, sign } from 'node:crypto'
import { DAY_MS } from '../wire/units.ts'

type ServerCertificate = {
  keyPem: string
  certificatePem: string
  /** SHA-256 of the certificate's DER: the channel binding. */
  hash: Uint8Array
  /** Unix milliseconds. */
  notAfterMs: number
}

const CERTIFICATE_DAYS = 10

/** One DER element: tag, definite length, content. */
function der(tag: number, ...content: Uint8Array[]): Buffer {
  const body = Buffer.concat(content)
  const length =
    body.length < 0x80 ? [body.length] : body.length < 0x100 ? [0x81, body.length] : [0x82, body.length >> 8, body.length & 0xff]
  return Buffer.concat([Buffer.of(tag, ...length), body])
}
const sequence = (...content: Uint8Array[]) => der(0x30, ...content)
const oid = (hex: string) => der(0x06, Buffer.from(hex, 'hex'))
/** UTCTime, YYMMDDHHMMSSZ: valid until 2049. */
const utcTime = (ms: number) => der(0x17, Buffer.from(`${new Date(ms).toISOString().slice(2, 19).replace(/[-:T]/g, '')}Z`))
const pem = (label: string, bytes: Buffer) =>
  `-----BEGIN ${label}-----\n${bytes.toString('base64').replace(/.{64}(?=.)/g, '$&\n')}\n-----END ${label}-----\n`

const ECDSA_WITH_SHA256 = sequence(oid('2a8648ce3d040302'))
const COMMON_NAME = oid('550403')
const SUBJECT_ALT_NAME = oid('551d11')

export function createServerCertificate(nowMs: number = Date.now()): ServerCertificate {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  // Valid from earlier, because this clock may be ahead of the clients' clocks.
  const notBeforeMs = nowMs - DAY_MS
  const notAfterMs = notBeforeMs + CERTIFICATE_DAYS * DAY_MS
  const serial = randomBytes(16)
  // A positive INTEGER without a leading zero byte.
  serial[0] = (serial[0]! & 0x7f) | 0x40
  const name = sequence(der(0x31, sequence(COMMON_NAME, der(0x0c, Buffer.from('godwit')))))
  const alternativeName = sequence(der(0x82, Buffer.from('localhost')))
  const toBeSigned = sequence(
    der(0xa0, der(0x02, Buffer.of(2))),
    der(0x02, serial),
    ECDSA_WITH_SHA256,
    name,
    sequence(utcTime(notBeforeMs), utcTime(notAfterMs)),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, sequence(sequence(SUBJECT_ALT_NAME, der(0x04, alternativeName)))),
  )
  const signature = sign('sha256', toBeSigned, privateKey)
  const certificate = sequence(toBeSigned, ECDSA_WITH_SHA256, der(0x03, Buffer.of(0), signature))
  return {
    keyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    certificatePem: pem('CERTIFICATE', certificate),
    hash: createHash('sha256').update(certificate).digest(),
    notAfterMs,
  }
}
