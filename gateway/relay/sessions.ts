// Which streams may be joined: a session is the gateway's permission for the streams of one migration, or of one copy
// of an image, from its source site to its target site. Enters: sessions opened by these; JOIN frames of authenticated
// sites. Leaves: a permit for one stream, or a coded error. Always holds: only the session's source may join, and only
// to its target; a (stream index, attempt) is admitted once, and attempts of an index only increase, so a replayed JOIN
// joins nothing; open streams of a session and sessions of a site are bounded; an unused session expires, and closing a
// session ends its streams. Pure, except for the clock.
import type { Clock } from '../../ops/clock.ts'
import type { Join, Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Direction } from '../../wire/roles.ts'
import { rolesOf } from '../../wire/roles.ts'

const SESSIONS_MAX = 1024
/** Limits of sessions of one source, and of those for hand-overs that the source reports itself. */
const SESSIONS_PER_SITE_MAX = 192
export const HANDOVER_SESSIONS_MAX = 64
export const SESSION_IDLE_MS = 10 * 60_000

type Permit = {
  readonly sessionId: string
  readonly target: string
  /** Aborted when the session is closed. */
  readonly signal: AbortSignal
  count(direction: Direction, bytes: number): void
  /** Call when the stream has ended: releases its slot. */
  release(): void
}

type SessionPlan = Pick<Plan, 'migrationId' | 'source' | 'target' | 'streams'>
type SessionBytes = Record<Direction, number>

export type Sessions = {
  /** LIMIT_EXCEEDED. `isHandover`: reported by the source; at the limit its longest unused session is closed. */
  open(plan: SessionPlan, options?: { isHandover?: boolean }): void
  /**
   * A permit for this stream; AUTH_FAILED (not this site's session), MIGRATION_UNKNOWN, MIGRATION_STATE (index,
   * replay), LIMIT_EXCEEDED.
   */
  admit(join: Join, site: string): Permit
  close(sessionId: string, reason: GodwitError): void
  closeAll(reason: GodwitError): void
  /** Closes sessions without a stream for SESSION_IDLE_MS. */
  expire(): void
  bytes(sessionId: string): SessionBytes | undefined
  streams(): number
}

type Session = {
  source: string
  target: string
  /** Indices 0..streams-1 exist. */
  streams: number
  /** By index: the last admitted attempt. */
  attempts: number[]
  open: number
  isHandover: boolean
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

  /** One site may not use more than its share. */
  const makeRoom = (source: string, isHandover: boolean) => {
    const own = [...sessions].filter(([, session]) => session.source === source)
    const named = own.filter(([, session]) => session.isHandover)
    if (own.length < SESSIONS_PER_SITE_MAX && (!isHandover || named.length < HANDOVER_SESSIONS_MAX)) return
    const unused = named.filter(([, { open }]) => open === 0).sort(([, a], [, b]) => a.lastUsedAt - b.lastUsedAt)
    const [oldest] = unused
    if (!oldest) throw new GodwitError('LIMIT_EXCEEDED', `site ${source} already has ${own.length} sessions`)
    close(oldest[0], new GodwitError('LIMIT_EXCEEDED', `site ${source} opened newer sessions`))
  }

  return {
    open(plan, { isHandover = false } = {}) {
      if (sessions.has(plan.migrationId)) return
      makeRoom(plan.source, isHandover)
      if (sessions.size >= SESSIONS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${SESSIONS_MAX} sessions`)
      sessions.set(plan.migrationId, {
        source: plan.source,
        target: plan.target,
        streams: rolesOf(plan.streams).length,
        attempts: [],
        open: 0,
        isHandover,
        lastUsedAt: clock.now(),
        bytes: { 'source-to-target': 0, 'target-to-source': 0 },
        over: new AbortController(),
      })
    },
    admit({ sessionId, index, attempt }, site) {
      const session = sessions.get(sessionId)
      if (!session) throw new GodwitError('MIGRATION_UNKNOWN', `no session ${sessionId}`)
      if (session.source !== site) throw new GodwitError('AUTH_FAILED', `site ${site} is not the source of session ${sessionId}`)
      if (index >= session.streams) throw new GodwitError('MIGRATION_STATE', `stream ${index} of a session with ${session.streams} streams`)
      if (attempt <= (session.attempts[index] ?? 0))
        throw new GodwitError('MIGRATION_STATE', `stream ${index}, attempt ${attempt}, was already joined`)
      // A new attempt may overlap with the end of the old one.
      if (session.open >= session.streams * 2)
        throw new GodwitError('LIMIT_EXCEEDED', `session ${sessionId} already has ${session.open} open streams`)
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
