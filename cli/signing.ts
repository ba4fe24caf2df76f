// Shared by root and enrol: reading the root key, issuing certificates, describing files. The crypto modules are loaded
// at the first use.

import type { Root } from '../crypto/certificate.ts'
import type { Subject } from '../crypto/subject.ts'
import { nowSeconds } from '../ops/clock.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'

/** The certificate, identity and file modules, with sodium ready. */
export async function loadCrypto() {
  const [certificate, identity, files] = await Promise.all([
    import('../crypto/certificate.ts'),
    import('../crypto/identity.ts'),
    import('../ops/files.ts'),
  ])
  await identity.loadSodium()
  return { certificate, identity, files }
}

export async function readRoot(path: string): Promise<Root> {
  const { certificate, files } = await loadCrypto()
  const text = await files.readSecret(path)
  try {
    return certificate.decodeRoot(text)
  } catch (error) {
    throw new GodwitError('CONFIG_INVALID', `${path}: ${toGodwitError(error).message}`, { cause: error })
  }
}

/** Clocks of sites differ a little: a new certificate must be valid at once. */
const SKEW_SECONDS = 300

export type Issued = {
  role: string
  id: string
  fingerprint: string
  serial: string
  notBefore: string
  notAfter: string
  issuer: string
  bytes: Uint8Array
}

/** Certifies a request. AUTH_FAILED if its keys do not match the fingerprint. */
export async function issue(
  root: Root,
  request: Uint8Array,
  o: { validMs: number; fingerprint?: string | undefined; id?: string },
): Promise<Issued> {
  const { certificate, identity } = await loadCrypto()
  const { role, id, signPublic, boxPublic } = certificate.verifyRequest(request)
  const shown = identity.fingerprint(signPublic)
  if (o.id !== undefined && id !== o.id) throw new GodwitError('AUTH_FAILED', `the request is for ${id}, not for ${o.id}`)
  if (o.fingerprint !== undefined && o.fingerprint.toLowerCase() !== shown) {
    throw new GodwitError('AUTH_FAILED', `the request for ${id} has fingerprint ${shown}, not ${o.fingerprint}`, {
      hint: 'do not sign it: somebody may have replaced the keys; ask the site for its fingerprint again',
    })
  }
  return await certify(root, { role, id, signPublic, boxPublic }, o.validMs)
}

/** A new certificate for this subject; the caller has checked its right to it. */
export async function certify(root: Root, subject: Subject, validMs: number): Promise<Issued> {
  const { certificate, identity } = await loadCrypto()
  const { role, id, signPublic, boxPublic } = subject
  const now = nowSeconds()
  const claims = { notBefore: now - SKEW_SECONDS, notAfter: now + Math.floor(validMs / 1000), serial: certificate.newSerial() }
  const bytes = certificate.issueCertificate(root, { role, id, signPublic, boxPublic, ...claims })
  return {
    role,
    id,
    fingerprint: identity.fingerprint(signPublic),
    serial: claims.serial,
    notBefore: iso(claims.notBefore),
    notAfter: iso(claims.notAfter),
    issuer: identity.fingerprint(root.signPublic),
    bytes,
  }
}

const iso = (seconds: number): string => new Date(seconds * 1000).toISOString()

/** The fields of a file; `error` for a certificate that this root does not accept. Secrets are never shown. */
export async function describeFile(path: string, rootPublicPath?: string): Promise<Record<string, string>> {
  const { certificate, identity, files } = await loadCrypto()
  const text = await files.readText(path)
  const found = files.dearmor(text)
  if (!found) return describeKeys(path, text)
  if (found.kind === 'ROOT PUBLIC KEY') return { kind: 'root public key', fingerprint: identity.fingerprint(found.bytes) }
  if (found.kind === 'CERTIFICATE REQUEST') {
    const { role, id, signPublic } = certificate.verifyRequest(found.bytes)
    return { kind: 'certificate request', role, id, fingerprint: identity.fingerprint(signPublic) }
  }
  const rootPublic = rootPublicPath === undefined ? undefined : await files.readArmored(rootPublicPath, 'ROOT PUBLIC KEY')
  const now = nowSeconds()
  if (found.kind === 'REVOCATIONS') {
    if (!rootPublic) return { kind: 'revocation list', note: 'give --root-public to check and show it' }
    const list = certificate.verifyRevocations(found.bytes, { rootPublic, now, maxAgeSeconds: Number.POSITIVE_INFINITY })
    return {
      kind: 'revocation list',
      number: String(list.number),
      issuedAt: iso(list.issuedAt),
      serials: [...list.serials].join(' ') || 'none',
    }
  }
  if (found.kind === 'FENCING STATEMENT') {
    if (!rootPublic) return { kind: 'fencing statement', note: 'give --root-public to check and show it' }
    const { verifyFencing } = await import('../crypto/fencing.ts')
    const { epoch, issuedAt, ...facts } = verifyFencing(found.bytes, { rootPublic })
    return { kind: 'fencing statement', ...facts, epoch: String(epoch), issuedAt: iso(issuedAt) }
  }
  const { role, id, signPublic, serial, notBefore, notAfter, issuer } = certificate.decodeCertificate(found.bytes)
  const facts: Record<string, string> = { kind: 'certificate', role, id, fingerprint: identity.fingerprint(signPublic), serial, issuer }
  Object.assign(facts, { notBefore: iso(notBefore), notAfter: iso(notAfter) })
  if (!rootPublic) return facts
  try {
    certificate.verifyCertificate(found.bytes, { rootPublic, now })
    return { ...facts, check: 'good' }
  } catch (error) {
    return { ...facts, check: 'NOT accepted', error: toGodwitError(error).message }
  }
}

async function describeKeys(path: string, text: string): Promise<Record<string, string>> {
  const { certificate, identity } = await loadCrypto()
  if (text.includes('"godwit-site-keys"')) {
    return { kind: 'keys (secret)', fingerprint: identity.fingerprint(identity.decodeKeys(text).signPublic) }
  }
  if (text.includes('"godwit-root-key"')) {
    return { kind: 'root key (secret)', fingerprint: identity.fingerprint(certificate.decodeRoot(text).signPublic) }
  }
  throw new GodwitError('CONFIG_INVALID', `${path}: not a file of godwit keygen, root or enrol`)
}
