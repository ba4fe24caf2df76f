// Who may be joined with whom: a session is the gateway's leave for one migration's streams, from its source site to its target site.
// Enters: sessions opened by migrations; JOIN frames of authenticated sites. Leaves: a permit for one stream, or a coded error.
// Always holds: only the session's source may join, and only towards its target; a (stream index, attempt) is admitted once, and attempts of
// an index only rise, so a replayed JOIN joins nothing; streams a session may have open are bounded; a session that nobody uses expires, a
// closed one takes its streams with it. Pure but for the clock.
import type { Clock } from '../../ops/clock.ts'
import type { Join, Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Direction } from './splice.ts'

export const SESSIONS_MAX = 1024
export const SESSION_IDLE_MS = 10 * 60_000
/** Streams beside the page streams: control and skeleton. */
const FIXED_STREAMS = 2

export type Permit = {
  readonly sessionId: string
  readonly target: string
  /** Aborted when the session is closed. */
  readonly signal: AbortSignal
  count(direction: Direction, bytes: number): void
  /** The stream has ended: its place is free again. */
  release(): void
}

export type SessionBytes = Record<Direction, number>

export type Sessions = {
  open(plan: Plan): void
  /** A permit for this stream; AUTH_FAILED (not this site's session), MIGRATION_UNKNOWN, MIGRATION_STATE (index, replay), LIMIT_EXCEEDED. */
  admit(join: Join, site: string): Permit
  close(sessionId: string, reason: GodwitError): void
  closeAll(reason: GodwitError): void
  /** Drops the sessions that have had no stream for SESSION_IDLE_MS. */
  expire(): void
  bytes(sessionId: string): SessionBytes | undefined
  streams(): number
}

type Session = {
  source: string
  target: string
  /** Indices 0..streams-1 exist. */
  streams: number
  /** By index: the last attempt that was admitted. */
  attempts: number[]
  open: number
  lastUsedAt: number
  bytes: SessionBytes
  over: AbortController
}

export function createSessions(clock: Clock): Sessions {
  const sessions = new Map<string, Session>()

  const close = (sessionId: string, reason: GodwitError) => {
    sessions.get(sessionId)?.over.abort(reason)
    sessions.delete(sessionId)
  }

  return {
    open(plan) {
      if (sessions.has(plan.migrationId)) return
      if (sessions.size >= SESSIONS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${SESSIONS_MAX} sessions`)
      sessions.set(plan.migrationId, {
        source: plan.source,
        target: plan.target,
        streams: plan.streams + FIXED_STREAMS,
        attempts: [],
        open: 0,
        lastUsedAt: clock.now(),
        bytes: { 'source-to-target': 0, 'target-to-source': 0 },
        over: new AbortController(),
      })
    },
    admit({ sessionId, index, attempt }, site) {
      const session = sessions.get(sessionId)
      if (!session) throw new GodwitError('MIGRATION_UNKNOWN', `no session ${sessionId}`)
      if (session.source !== site) throw new GodwitError('AUTH_FAILED', `site ${site} is not the source of session ${sessionId}`)
      if (index >= session.streams) throw new GodwitError('MIGRATION_STATE', `stream ${index} of a session with ${session.streams}`)
      if (attempt <= (session.attempts[index] ?? 0))
        throw new GodwitError('MIGRATION_STATE', `stream ${index}, attempt ${attempt}, has been joined before`)
      // A new attempt may overlap with the old one's end, no more than that.
      if (session.open >= session.streams * 2)
        throw new GodwitError('LIMIT_EXCEEDED', `session ${sessionId} has ${session.open} streams open`)
      session.attempts[index] = attempt
      session.open += 1
      let released = false
      return {
        sessionId,
        target: session.target,
        signal: session.over.signal,
        count(direction, bytes) {
          session.bytes[direction] += bytes
        },
        release() {
          if (released) return
          released = true
          session.open -= 1
          session.lastUsedAt = clock.now()
        },
      }
    },
    close,
    closeAll(reason) {
      for (const sessionId of [...sessions.keys()]) close(sessionId, reason)
    },
    expire() {
      for (const [sessionId, session] of sessions)
        if (session.open === 0 && clock.now() - session.lastUsedAt >= SESSION_IDLE_MS)
          close(sessionId, new GodwitError('TIMEOUT', 'the session was not used'))
    },
    bytes: sessionId => sessions.get(sessionId)?.bytes,
    streams: () => [...sessions.values()].reduce((sum, session) => sum + session.open, 0),
  }
}
