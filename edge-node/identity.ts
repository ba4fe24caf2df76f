// Reads what a site or gateway proves itself with. Enters: paths. Leaves: keys, certificate, root and revocation list, checked against each other.
// Always holds: a certificate that is not for these keys, not of this root, expired or revoked stops the start, not the first migration.
import { type Certificate, type Revocations, verifyCertificate, verifyRevocations } from '../crypto/certificate.ts'
import { decodeKeys, loadSodium, type SiteKeys } from '../crypto/identity.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { readArmored, readSecret } from '../ops/files.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'

/** Older lists are not believed: whoever withholds newer ones could keep a revoked site alive. */
export const REVOCATIONS_MAX_AGE_SECONDS = 30 * 86_400

export type IdentityPaths = { keys: string; certificate: string; root: string; revocations?: string | undefined }

export type LoadedIdentity = LinkIdentity & {
  claims: Certificate
  rootPublic: Uint8Array
  revocations: Revocations | undefined
}

/** CONFIG_UNREADABLE, CONFIG_INVALID (naming the file), CERT_*, AUTH_FAILED, REVOCATION_STALE. `now`: Unix seconds. */
export async function loadIdentity(
  paths: IdentityPaths,
  { role, id, now }: { role: 'site' | 'gateway'; id: string; now: number },
): Promise<LoadedIdentity> {
  await loadSodium()
  const keys = await readKeys(paths.keys)
  const rootPublic = await readArmored(paths.root, 'ROOT PUBLIC KEY')
  const certificate = await readArmored(paths.certificate, 'CERTIFICATE')
  const revocations = await loadRevocations(paths.revocations, rootPublic, now)
  const claims = verifyCertificate(certificate, { rootPublic, now, role, id, ...(revocations === undefined ? {} : { revocations }) })
  const isOurs = same(claims.signPublic, keys.signPublic) && same(claims.boxPublic, keys.boxPublic)
  if (!isOurs) throw new GodwitError('CONFIG_INVALID', `${paths.certificate} is not for the keys in ${paths.keys}`)
  return { keys, certificate, claims, rootPublic, revocations }
}

/** The list as it is on the disk now; undefined where none is used. CONFIG_*, CERT_*, REVOCATION_STALE. */
export async function loadRevocations(path: string | undefined, rootPublic: Uint8Array, now: number): Promise<Revocations | undefined> {
  if (path === undefined) return undefined
  return verifyRevocations(await readArmored(path, 'REVOCATIONS'), { rootPublic, now, maxAgeSeconds: REVOCATIONS_MAX_AGE_SECONDS })
}

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
