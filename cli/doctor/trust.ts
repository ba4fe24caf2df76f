// Checks of godwit doctor for certificates and the revocation list. Enters: checked configurations. Leaves: one check
// for each trust file.
import { newestCertificate, renewedFile } from '../../identity/load.ts'
import { REVOCATIONS_MAX_AGE_SECONDS } from '../../identity/trust.ts'
import { exists } from '../../ops/files.ts'
import { toGodwitError } from '../../wire/errors.ts'
import { loadCrypto } from '../signing.ts'
import type { Check } from './check.ts'

const DAY = 86_400
/** A certificate requests its renewal long before this: at this point the renewal does not work. */
const CERTIFICATE_DAYS_MIN = 7
const LIST_OLD_SECONDS = REVOCATIONS_MAX_AGE_SECONDS * 0.75

type TrustFiles = { kind: 'gateway' | 'node'; certificate: string; root: string; stateDir?: string; revocations: string | undefined }

/** `now`: Unix seconds. */
export async function trustChecks({ kind, certificate, root, stateDir, revocations }: TrustFiles, now: number): Promise<Check[]> {
  const checks: Check[] = []
  if (await exists(certificate)) checks.push(await certificateCheck(`${kind} certificate`, await inForce(kind, certificate, stateDir), now))
  if (await exists(root)) checks.push(...(await listChecks(kind, root, revocations, now)))
  return checks
}

async function inForce(kind: TrustFiles['kind'], certificate: string, stateDir: string | undefined): Promise<Uint8Array> {
  const renewed = stateDir === undefined ? undefined : renewedFile(stateDir, kind === 'node' ? 'site' : 'gateway')
  return await newestCertificate({ certificate, renewed })
}

async function certificateCheck(name: string, bytes: Uint8Array, now: number): Promise<Check> {
  const { certificate } = await loadCrypto()
  const { notAfter } = certificate.decodeCertificate(bytes)
  const days = Math.floor((notAfter - now) / DAY)
  if (now > notAfter) return { name, state: 'fail', detail: 'expired', advice: 'enrol again: godwit enrol request, or godwit root sign' }
  const detail = `expires in ${days} days`
  if (days < CERTIFICATE_DAYS_MIN)
    return { name, state: 'warn', detail, advice: 'renew it before that: godwit root renew, on the machine with root.key' }
  return { name, state: 'ok', detail }
}

async function listChecks(kind: TrustFiles['kind'], root: string, path: string | undefined, now: number): Promise<Check[]> {
  const name = 'revocation list'
  if (path === undefined || !(await exists(path))) {
    // The gateway sends the list to nodes: only the gateway needs the file.
    if (kind === 'node') return []
    const advice = 'copy the file revocations, which godwit root create wrote beside root.pub'
    return [{ name, state: 'fail', detail: `${path} is missing: no migration can begin`, advice }]
  }
  const { certificate, files } = await loadCrypto()
  const advice = 'run godwit root revoke on the machine with root.key, and copy the list to this host'
  try {
    const rootPublic = await files.readArmored(root, 'ROOT PUBLIC KEY')
    const options = { rootPublic, now, maxAgeSeconds: Number.POSITIVE_INFINITY }
    const { number, issuedAt } = certificate.verifyRevocations(await files.readArmored(path, 'REVOCATIONS'), options)
    const age = now - issuedAt
    const detail = `number ${number}, ${Math.floor(age / DAY)} days old`
    if (age > REVOCATIONS_MAX_AGE_SECONDS) return [{ name, state: 'fail', detail: `${detail}: no migration can begin`, advice }]
    return [age > LIST_OLD_SECONDS ? { name, state: 'warn', detail, advice } : { name, state: 'ok', detail }]
  } catch (error) {
    return [{ name, state: 'fail', detail: `${path}: ${toGodwitError(error).message}`, advice }]
  }
}
