// Renews a certificate: after two thirds of its validity its holder requests the next one through the gateway, signed
// with the old key, until the root has signed it (godwit root renew). Enters: the current identity, a function that
// sends the request, files that may change. Leaves: the same identity object with a newer certificate, and a
// notification. Always holds: a new certificate is of the trusted root, for the same keys, and valid for longer than
// the old one; it is on disk before it is used; a failure is retried, and the log warns while the old certificate
// expires.
import type { Certificate } from '../crypto/certificate.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { createRenewal, dueAt } from '../crypto/renewal.ts'
import { type Clock, systemClock, unixSeconds } from '../ops/clock.ts'
import { armor, exists, readArmored, writeFileSafely } from '../ops/files.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import type { Trust } from './trust.ts'

/** Shares of the validity after which the renewal begins, and after which the log warns. */
const ASK_FROM = 2 / 3
const WARN_FROM = 5 / 6
const LOOK_MS = { most: 60_000, least: 1_000 }
/** Number of attempts in the remaining validity: the nearer the end, the more frequent they are. */
const LOOKS_LEFT = 20
const WARN_EVERY_MS = 6 * 3_600_000

type RenewedIdentity = LinkIdentity & { claims: Certificate }

type RenewalOptions = {
  /** Changed in place. */
  identity: RenewedIdentity
  trust: Trust
  /** Files where the operator may put a newer certificate, and where this process stores a renewed one. */
  files: { configured: string; renewed: string }
  /** Sends a request to the gateway; returns the certificate if it is issued. */
  ask(request: Uint8Array): Promise<Uint8Array | undefined>
  /** A newer certificate is in use: new links send it. */
  onRenewed(): void
  /** True while reconnecting would delay something. After WARN_FROM nothing delays a renewal. */
  isBusy?: () => boolean
  clock?: Clock | undefined
  log: Log
  lookEveryMs?: number | undefined
}

/** Checks at once and then periodically, until close(). */
export function keepRenewed(options: RenewalOptions): { look(): Promise<void>; close(): void } {
  const { identity, files, ask, onRenewed, isBusy = () => false, clock = systemClock, log } = options
  let running: Promise<void> | undefined
  let isClosed = false
  let warnedAt = Number.NEGATIVE_INFINITY

  const install = async (bytes: Uint8Array, from: string): Promise<void> => {
    const claims = accepted(bytes, options)
    if (!claims) return
    if (from !== files.configured) await writeFileSafely(files.renewed, armor('CERTIFICATE', bytes), { mode: 0o644, overwrite: true })
    Object.assign(identity, { certificate: bytes, claims })
    log.info('certificate renewed', { serial: claims.serial, notAfter: new Date(claims.notAfter * 1000).toISOString(), from })
    onRenewed()
  }
  const warn = (error: GodwitError | undefined): void => {
    const now = unixSeconds(clock)
    if (now < dueAt(identity.claims, WARN_FROM) || clock.now() - warnedAt < WARN_EVERY_MS) return
    warnedAt = clock.now()
    const hint = 'run godwit root renew on the machine with root.key'
    log.warn('certificate expires soon and is not renewed', { expiresInSeconds: identity.claims.notAfter - now, hint, error })
  }
  // Running migrations keep their certificate. A new one makes them change their connections; an expired one is worse.
  const mustWait = () => isBusy() && unixSeconds(clock) < dueAt(identity.claims, WARN_FROM)
  /**
   * The operator's file. If it is not the current certificate it may have expired long ago; then the gateway is asked
   * anyway.
   */
  const installPlaced = async (): Promise<GodwitError | undefined> => {
    try {
      if (await exists(files.configured)) await install(await readArmored(files.configured, 'CERTIFICATE'), files.configured)
      return undefined
    } catch (thrown) {
      return toGodwitError(thrown)
    }
  }
  const lookOnce = async (): Promise<void> => {
    if (mustWait()) return
    const unusable = await installPlaced()
    const now = unixSeconds(clock)
    if (now < dueAt(identity.claims, ASK_FROM) || now > identity.claims.notAfter) return warn(unusable)
    const issued = await ask(createRenewal(identity.keys, identity.certificate, now))
    if (issued && !mustWait()) await install(issued, 'gateway')
    warn(unusable)
  }
  const look = (): Promise<void> => {
    running ??= lookOnce()
      .catch(thrown => {
        const error = toGodwitError(thrown)
        log.debug('certificate renewal failed', { error })
        warn(error)
      })
      .finally(() => {
        running = undefined
      })
    return running
  }
  let timer: NodeJS.Timeout | undefined
  const later = () => {
    const leftMs = identity.claims.notAfter * 1000 - clock.now()
    const ms = options.lookEveryMs ?? Math.min(LOOK_MS.most, Math.max(LOOK_MS.least, leftMs / LOOKS_LEFT))
    timer = setTimeout(() => void look().then(() => !isClosed && later()), ms).unref()
  }
  later()
  return {
    look,
    close() {
      isClosed = true
      clearTimeout(timer)
    },
  }
}

/**
 * The claims of a certificate that may replace the current one; undefined if the current one is as good. CERT_*,
 * AUTH_FAILED.
 */
function accepted(bytes: Uint8Array, { identity, trust }: RenewalOptions): Certificate | undefined {
  const { role, id, signPublic, boxPublic, notAfter } = identity.claims
  if (same(bytes, identity.certificate)) return undefined
  const claims = trust.verify(bytes, { role, id })
  if (!same(claims.signPublic, signPublic) || !same(claims.boxPublic, boxPublic))
    throw new GodwitError('AUTH_FAILED', `the keys of the new certificate of ${role} ${id} differ: new keys need a restart`)
  return claims.notAfter > notAfter ? claims : undefined
}

const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0
