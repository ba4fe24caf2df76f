// Which certificates this process trusts: one provider for the gateway and for both sides of a migration. Enters: the
// root's public key, lists from a file (read again after a change) and from the gateway (offer), a store, a clock.
// Leaves: certificates checked against the newest list at each use, and a notification of each change. Always holds:
// the number of the current list only increases, also over restarts (it is stored); a list needs the root's signature,
// whoever delivers it; its age is checked at each use, so a list that was new at the start expires later. Serials of an
// expired list stay revoked: the age only stops new migrations.
import { stat } from 'node:fs/promises'
import { fromBase64, toBase64 } from '../crypto/bytes.ts'
import { type Certificate, type Revocations, type SubjectRole, verifyCertificate, verifyRevocations } from '../crypto/certificate.ts'
import { type Clock, systemClock, unixSeconds } from '../ops/clock.ts'
import { readArmored } from '../ops/files.ts'
import type { Store } from '../ops/store.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'

/**
 * A list older than this stops new migrations: otherwise an attacker who withholds newer lists could keep a revoked
 * site active.
 */
export const REVOCATIONS_MAX_AGE_SECONDS = 30 * 86_400
/** From this age on the log warns that a new list is required. */
const OLD_SECONDS = REVOCATIONS_MAX_AGE_SECONDS * 0.75
const LOOK_EVERY_MS = 2_000
const RETRY_MS = 60_000
const WARN_EVERY_MS = 6 * 3_600_000
/** A new node has no list until its gateway sends one: no warning before this time. */
const FIRST_LIST_MS = 60_000
const TABLE = 'trust'
const KEY = 'revocations'

export type Trust = {
  readonly rootPublic: Uint8Array
  /** The newest list that this process has seen, whatever its age. */
  list(): Revocations | undefined
  /** Its bytes, as the root signed them. */
  signed(): Uint8Array | undefined
  /** Seconds since the list was signed. */
  ageSeconds(): number | undefined
  /** REVOCATION_MISSING, REVOCATION_STALE: no migration may begin. */
  requireFresh(): void
  /** The certificate, if it is valid now. CERT_*, AUTH_FAILED. */
  verify(certificate: Uint8Array, who: { role: SubjectRole; id: string }): Certificate
  /**
   * Accepts a list that is newer than the current one, and returns the number of the current list. CERT_UNTRUSTED,
   * CERT_MALFORMED, REVOCATION_STALE (older, or dated ahead).
   */
  offer(bytes: Uint8Array): Promise<number>
  /** Reads the file now if it has changed. An invalid file only causes a warning. */
  refresh(): Promise<void>
  /** Resolves when all lists offered so far are processed. */
  settled(): Promise<void>
  /**
   * Calls `listener` after each new list, and every `lookEveryMs`, because expiry causes no event. Returns the function
   * that ends it.
   */
  watch(listener: () => void): () => void
  close(): Promise<void>
}

export type TrustOptions = {
  rootPublic: Uint8Array
  /** File of the armoured list; it may not exist yet. Absent: lists only arrive by offer. */
  file?: string | undefined
  store: Store
  clock?: Clock | undefined
  log: Log
  lookEveryMs?: number | undefined
}

type Stored = { number: number; list: string }
type Held = { list: Revocations; bytes: Uint8Array }

/**
 * Reads the stored list and the file. Throws for a file that is not a list of the trusted root (CONFIG_INVALID,
 * CERT_*); a missing or old one only causes a warning.
 */
export async function openTrust(options: TrustOptions): Promise<Trust> {
  const { rootPublic, file, store, clock = systemClock, log, lookEveryMs = LOOK_EVERY_MS } = options
  const listeners = new Set<() => void>()
  let held: Held | undefined
  let seen = ''
  /** Unix ms; a rejected file is tried again (its date may have been ahead of this clock). */
  let seenUntil = 0
  let queue: Promise<unknown> = Promise.resolve()
  const save = createSave(store)

  const tell = () => {
    for (const listener of listeners) {
      try {
        listener()
      } catch (error) {
        log.error('trust check failed', { error })
      }
    }
  }
  const verified = (bytes: Uint8Array, now: number, newerThan?: number): Held => ({
    bytes,
    list: verifyRevocations(bytes, {
      ...{ rootPublic, now, maxAgeSeconds: Number.POSITIVE_INFINITY },
      ...(newerThan === undefined ? {} : { newerThan }),
    }),
  })
  const take = async (bytes: Uint8Array): Promise<number> => {
    const offered = verified(bytes, unixSeconds(clock), held?.list.number)
    if (held && offered.list.number === held.list.number) {
      await save(held, { isNew: false })
      return held.list.number
    }
    // Used before it is on disk: a failed write must not keep a revoked site active.
    held = offered
    log.info('new revocation list in use', { number: held.list.number, serials: held.list.serials.size })
    tell()
    await save(offered, { isNew: true })
    return offered.list.number
  }
  const offer = (bytes: Uint8Array): Promise<number> => {
    const mine = queue.then(() => take(bytes))
    queue = mine.catch(() => {})
    return mine
  }
  const ageSeconds = () => (held ? unixSeconds(clock) - held.list.issuedAt : undefined)
  const look = async (): Promise<void> => {
    const state = file === undefined ? '' : await stateOf(file)
    if (file === undefined || (state === seen && clock.now() < seenUntil)) return
    seen = state
    seenUntil = clock.now() + RETRY_MS
    if (state !== '') await offer(await readArmored(file, 'REVOCATIONS'))
    seenUntil = Number.POSITIVE_INFINITY
  }
  const remind = createReminder(options)

  const stored = await store.get<Stored>(TABLE, KEY)
  if (stored) held = heldFrom(stored, verified, log)
  await look().catch(error => {
    if (toGodwitError(error).code !== 'REVOCATION_STALE') throw error
    log.warn('revocation list in the file rejected', { file, error })
  })
  const refresh = () => look().catch(error => log.warn('revocation list in the file rejected', { file, error }))
  const timer = setInterval(() => {
    refresh().finally(() => {
      remind(held?.list.number, ageSeconds())
      tell()
    })
  }, lookEveryMs)
  timer.unref()

  return {
    rootPublic,
    list: () => held?.list,
    signed: () => held?.bytes,
    ageSeconds,
    requireFresh: () => requireFresh(held?.list, ageSeconds()),
    verify(certificate, who) {
      const revocations = held ? { revocations: held.list } : {}
      return verifyCertificate(certificate, { rootPublic, now: unixSeconds(clock), ...who, ...revocations })
    },
    offer,
    refresh,
    settled: () => queue.then(() => {}),
    watch(listener) {
      listeners.add(listener)
      return () => void listeners.delete(listener)
    },
    async close() {
      clearInterval(timer)
      listeners.clear()
      await queue
    },
  }
}

const MISSING_HINT = 'copy the file revocations, which godwit root create and godwit root revoke write, to the gateway (revocations)'
const STALE_HINT = 'run godwit root revoke on the machine with root.key, and copy the list to the gateway (revocations)'

/** Warns in the log that a (newer) list is required, a few times a day. */
function createReminder({ log, clock = systemClock, file }: TrustOptions) {
  let warnedAt = Number.NEGATIVE_INFINITY
  const openedAt = clock.now()
  return (number: number | undefined, ageSeconds: number | undefined): void => {
    const isWell = ageSeconds === undefined ? clock.now() - openedAt < FIRST_LIST_MS : ageSeconds < OLD_SECONDS
    if (isWell || clock.now() - warnedAt < WARN_EVERY_MS) return
    warnedAt = clock.now()
    if (ageSeconds === undefined) log.warn('no revocation list: no migration can begin', { file, hint: MISSING_HINT })
    else log.warn('revocation list expires soon', { number, ageSeconds, hint: STALE_HINT })
  }
}

function requireFresh(list: Revocations | undefined, ageSeconds: number | undefined): void {
  if (!list || ageSeconds === undefined)
    throw new GodwitError('REVOCATION_MISSING', 'this process has no revocation list of the trusted root: no migration can begin', {
      hint: MISSING_HINT,
    })
  if (ageSeconds <= REVOCATIONS_MAX_AGE_SECONDS) return
  const days = (seconds: number) => Math.floor(seconds / 86_400)
  throw new GodwitError(
    'REVOCATION_STALE',
    `revocation list ${list.number} is ${days(ageSeconds)} days old, the limit is ${days(REVOCATIONS_MAX_AGE_SECONDS)}: no migration can begin`,
    { hint: STALE_HINT },
  )
}

/** Stores a list: a new one, or one whose write failed before. */
function createSave(store: Store) {
  let isBehind = false
  return async ({ bytes, list: { number } }: Held, { isNew }: { isNew: boolean }): Promise<void> => {
    if (!isNew && !isBehind) return
    isBehind = true
    await store.put(TABLE, KEY, { number, list: toBase64(bytes) } satisfies Stored, { sync: true })
    isBehind = false
  }
}

/**
 * A stored list that does not verify is of an earlier root and is ignored. Its date was checked on arrival, so a clock
 * that is behind now cannot undo a revocation.
 */
function heldFrom(stored: Stored, verified: (bytes: Uint8Array, now: number) => Held, log: Log): Held | undefined {
  try {
    return verified(fromBase64(stored.list), Number.POSITIVE_INFINITY)
  } catch (error) {
    log.error('stored revocation list rejected', { number: stored.number, error })
    return undefined
  }
}

/** Changes with every write of the file; empty if the file does not exist. */
async function stateOf(file: string): Promise<string> {
  try {
    const { ino, size, mtimeNs } = await stat(file, { bigint: true })
    return `${ino} ${size} ${mtimeNs}`
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return ''
    return `unreadable ${(error as NodeJS.ErrnoException).code}`
  }
}
