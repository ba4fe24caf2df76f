// Decides when and how to reconnect to a broker: version, wait, and whether to log it. Pure: errors and times in, the
// next attempt out. Always holds: waits grow until a connection has lasted STABLE_MS, so a flapping one is not retried
// five times a second; if another client takes over the client id, retries are rare; a broker that does not answer one
// version is tried with the other (`auto`); the log repeats the failure.
import { GodwitError } from '../wire/errors.ts'

export type Backoff = { firstMs: number; maxMs: number }

const BACKOFF: Backoff = { firstMs: 200, maxMs: 10_000 }
/** Another client uses the same id: each attempt ends its connection, so attempts are rare. */
const TAKEN_BACKOFF: Backoff = { firstMs: 5_000, maxMs: 300_000 }
/** A connection that lasts this long counts as stable. */
const STABLE_MS = 30_000
/**
 * This many short connections in a row, each ended by the broker without a reason: MQTT 3.1.1 has no other sign of a
 * second client with the same id.
 */
const TAKEN_PATTERN = 5
/** Unanswered connections before the other version is tried. */
const UNANSWERED_MAX = 2
/** The first failures, each power of two, and about one an hour are logged. */
const LINE_EVERY = 360

/** The broker reports that it does not support this version. */
export class VersionRefused extends GodwitError {
  constructor() {
    super('BROKER_UNREACHABLE', 'the broker does not support this version of MQTT')
  }
}

/** The broker accepted the connection and then closed it or did not answer. */
export class NoAnswer extends GodwitError {
  constructor(where: string, cause: Error) {
    super('BROKER_UNREACHABLE', `the MQTT broker at ${where} does not answer CONNECT: ${cause.message}`, { cause })
  }
}

export const takenError = (clientId: string): GodwitError =>
  new GodwitError('BROKER_CLIENT_TAKEN', `another client connected to the MQTT broker with our client id '${clientId}'`)

type RetryOptions = {
  version: 'auto' | '5' | '3.1.1'
  clientId: string
  backoff?: Backoff
  takenBackoff?: Backoff
  random(): number
}

type Retry = {
  /** For the next connection. */
  readonly version: 4 | 5
  /** In a row. */
  readonly failures: number
  /** Whether another version remains to be tried. */
  readonly triesAnother: boolean
  connected(): void
  /** An established connection ended; returns the interpreted error. */
  ended(error: GodwitError, lastedMs: number): GodwitError
  /** A connection could not be established. */
  failed(error: GodwitError): void
  next(): { waitMs: number; isWorthALine: boolean }
}

export function createRetry({ version: wanted, clientId, backoff = BACKOFF, takenBackoff = TAKEN_BACKOFF, random }: RetryOptions): Retry {
  let version: 4 | 5 = wanted === '3.1.1' ? 4 : 5
  let failures = 0
  let unanswered = 0
  let short = 0
  let taken = 0
  let isAtOnce = false
  let isNews = false

  function change(): void {
    version = version === 5 ? 4 : 5
    unanswered = 0
    isAtOnce = failures <= UNANSWERED_MAX
  }

  return {
    get version() {
      return version
    },
    get failures() {
      return failures
    },
    get triesAnother() {
      return wanted === 'auto' && version === 5 && unanswered > 0
    },
    connected() {
      unanswered = 0
    },
    ended(error, lastedMs) {
      const isShort = lastedMs < STABLE_MS
      if (!isShort) failures = taken = short = 0
      failures += 1
      short = isShort && error.code === 'BROKER_UNREACHABLE' && !/keepalive/i.test(error.message) ? short + 1 : 0
      isNews = true
      const isTaken = error.code === 'BROKER_CLIENT_TAKEN' || short >= TAKEN_PATTERN
      if (!isTaken) return error
      taken += 1
      return error.code === 'BROKER_CLIENT_TAKEN' ? error : likelyTaken(clientId, short, error)
    },
    failed(error) {
      failures += 1
      isNews = failures === 1
      short = 0
      if (wanted !== 'auto') return
      if (error instanceof VersionRefused && version === 5) change()
      else if (error instanceof NoAnswer) {
        unanswered += 1
        if (unanswered >= UNANSWERED_MAX) change()
      } else unanswered = 0
    },
    next() {
      const isWorthALine = isNews || Number.isInteger(Math.log2(failures)) || failures % LINE_EVERY === 0
      const { firstMs, maxMs } = taken > 0 ? takenBackoff : backoff
      const waitMs = isAtOnce ? 0 : Math.min(maxMs, firstMs * 2 ** Math.min((taken || failures) - 1, 16)) * (0.5 + random() / 2)
      isAtOnce = isNews = false
      return { waitMs, isWorthALine }
    },
  }
}

const likelyTaken = (clientId: string, short: number, cause: GodwitError): GodwitError =>
  new GodwitError(
    'BROKER_CLIENT_TAKEN',
    `the MQTT broker ended ${short} connections within ${STABLE_MS / 1000} s each: another client probably uses our client id '${clientId}'`,
    { cause },
  )
