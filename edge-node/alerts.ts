// What looks like an attack, told once in a line of the log and counted for Prometheus. Enters: coded errors from where
// a peer's or the relay's bytes are judged. Leaves: a log line with `alert` and `code`, a counter. Always holds: kinds
// and codes come from this code, never from a peer; one migration raises one alert of a code on each side, however
// often it is seen; a flood of alerts makes at most LINES_MAX lines a minute, and all of it is counted.

import type { ErrorCode, GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { MINUTE_MS } from '../wire/units.ts'

/**
 * relay_tampering: sealed bytes are not what was sent (altered, reordered, doubled, replayed, cut, withheld at the
 * end). handshake_failed: the end-to-end handshake does not come about: other plans, other keys, an old session.
 * relay_stalled: bytes were sent and nothing arrives: a stream is withheld, or the path is dead.
 * misrouted: a stream or a plan that is not for this site, or not for any migration here. peer_denied: a certificate or
 * a rule does not let the other site do this. stale_epoch: a message of an earlier owner. protocol_breach: the gateway
 * or the other site says what does not fit the migration, or is no message at all. unauthorized_move: the gateway asks
 * for a VM to leave, and no rule of this site or no valid signature of a commander allows it. split_verdict: the target
 * gave back a VM that was handed over to it: it, or somebody between, heard another story than the source.
 */
type AlertKind =
  | 'relay_tampering'
  | 'handshake_failed'
  | 'relay_stalled'
  | 'misrouted'
  | 'peer_denied'
  | 'stale_epoch'
  | 'protocol_breach'
  | 'unauthorized_move'
  | 'split_verdict'

const KIND_OF: Partial<Record<ErrorCode, AlertKind>> = {
  DECRYPT_FAILED: 'relay_tampering',
  MANIFEST_MISMATCH: 'relay_tampering',
  FRAME_TRUNCATED: 'relay_tampering',
  FRAME_TYPE: 'relay_tampering',
  FRAME_TOO_LARGE: 'relay_tampering',
  FRAME_MALFORMED: 'relay_tampering',
  HANDSHAKE_FAILED: 'handshake_failed',
  CERT_UNTRUSTED: 'peer_denied',
  CERT_EXPIRED: 'peer_denied',
  CERT_REVOKED: 'peer_denied',
  CERT_MALFORMED: 'peer_denied',
  AUTH_FAILED: 'peer_denied',
  MIGRATION_DENIED: 'peer_denied',
  EPOCH_STALE: 'stale_epoch',
  MIGRATION_STATE: 'protocol_breach',
  MIGRATION_TIMEOUT: 'relay_stalled',
  MIGRATION_REFUSED: 'split_verdict',
}

/** The kind of alert that an error of a migration is; undefined for an ordinary failure. */
const alertKindOf = (code: ErrorCode): AlertKind | undefined => KIND_OF[code]

type AlertFacts = { migrationId?: string; side?: 'source' | 'target'; [field: string]: unknown }

export type Alerts = {
  /** Raises an alert of the error's own kind (of `kind` when given); nothing happens for an ordinary failure. */
  raise(error: GodwitError, facts?: AlertFacts, kind?: AlertKind): void
}

const LINES_MAX = 60
const SEEN_MAX = 1024

export type AlertOptions = { log: Log; count: (labels: { kind: AlertKind; code: ErrorCode }) => void; nowMs?: () => number }

export function createAlerts({ log, count, nowMs = () => performance.now() }: AlertOptions): Alerts {
  const seen = new Set<string>()
  const minute = { since: nowMs(), lines: 0, left: 0 }

  const isNew = ({ migrationId, side }: AlertFacts, kind: AlertKind, code: ErrorCode): boolean => {
    if (migrationId === undefined) return true
    const key = `${migrationId} ${side ?? ''} ${kind} ${code}`
    if (seen.has(key)) return false
    if (seen.size >= SEEN_MAX) for (const oldest of [...seen].slice(0, SEEN_MAX / 2)) seen.delete(oldest)
    seen.add(key)
    return true
  }
  return {
    raise(error, facts = {}, kind = alertKindOf(error.code)) {
      if (kind === undefined || !isNew(facts, kind, error.code)) return
      count({ kind, code: error.code })
      const now = nowMs()
      if (now - minute.since >= MINUTE_MS) {
        if (minute.left > 0) log.error('alerts counted but not logged', { alert: 'flood', alerts: minute.left })
        Object.assign(minute, { since: now, lines: 0, left: 0 })
      }
      if (minute.lines >= LINES_MAX) minute.left += 1
      else {
        minute.lines += 1
        log.error('possible attack', { alert: kind, code: error.code, ...facts, error })
      }
    },
  }
}
