// Loads the identity of a site or gateway. Enters: paths. Leaves: keys, certificate and root, checked against each
// other. Always holds: a certificate for other keys, of another root, or expired, stops the start and not only the
// first migration. Revocation is checked in identity/trust.ts.
import { join } from 'node:path'
import { type Certificate, decodeCertificate, verifyCertificate } from '../crypto/certificate.ts'
import { decodeKeys, loadSodium, type SiteKeys } from '../crypto/identity.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { exists, readArmored, readSecret } from '../ops/files.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'

type IdentityPaths = {
  keys: string
  certificate: string
  root: string
  /**
   * The file of a renewed certificate (identity/renewal.ts): it is used if it is for the same keys and valid for
   * longer.
   */
  renewed?: string | undefined
}

/** In the state folder, because the configuration folder may be read-only. */
export const renewedFile = (stateDir: string, role: 'site' | 'gateway'): string => join(stateDir, `${role}.cert`)

export type LoadedIdentity = LinkIdentity & {
  claims: Certificate
  rootPublic: Uint8Array
}

/** CONFIG_UNREADABLE, CONFIG_INVALID (naming the file), CERT_*, AUTH_FAILED. `now`: Unix seconds. */
export async function loadIdentity(
  paths: IdentityPaths,
  { role, id, now }: { role: 'site' | 'gateway'; id: string; now: number },
): Promise<LoadedIdentity> {
  await loadSodium()
  const keys = await readKeys(paths.keys)
  const rootPublic = await readArmored(paths.root, 'ROOT PUBLIC KEY')
  const certificate = await newestCertificate(paths)
  const claims = verifyCertificate(certificate, { rootPublic, now, role, id })
  const isOurs = same(claims.signPublic, keys.signPublic) && same(claims.boxPublic, keys.boxPublic)
  if (!isOurs) throw new GodwitError('CONFIG_INVALID', `${paths.certificate} is not for the keys in ${paths.keys}`)
  return { keys, certificate, claims, rootPublic }
}

/**
 * The certificate of the configuration, or the renewed one of the same keys and root if that is valid for longer.
 * CONFIG_*, CERT_MALFORMED.
 */
export async function newestCertificate({ certificate, renewed }: Pick<IdentityPaths, 'certificate' | 'renewed'>): Promise<Uint8Array> {
  const configured = await readArmored(certificate, 'CERTIFICATE')
  if (renewed === undefined || !(await exists(renewed))) return configured
  const [ours, next] = [configured, await readArmored(renewed, 'CERTIFICATE')].map(bytes => ({
    bytes,
    claims: decodeCertificate(bytes),
  })) as [Read, Read]
  const isOfSame = same(ours.claims.signPublic, next.claims.signPublic) && next.claims.issuer === ours.claims.issuer
  return isOfSame && next.claims.notAfter > ours.claims.notAfter ? next.bytes : configured
}
type Read = { bytes: Uint8Array; claims: Certificate }

export async function readKeys(path: string): Promise<SiteKeys> {
  await loadSodium()
  const text = await readSecret(path)
  try {
    return decodeKeys(text)
  } catch (error) {
    throw new GodwitError('CONFIG_INVALID', `${path}: ${toGodwitError(error).message}`, { cause: error })
  }
}

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0
