// What happens in the gateway, for those who only watch: the MQTT plane, the standards' fronts, policies.
// Enters: sites that came, went or changed; migrations that changed state or moved on. Leaves: calls of the listeners,
// in order, at once.
// Always holds: a listener cannot harm what it watches: what it throws is logged, and nobody waits for it.
import type { MigrationRecord, PrestageRecord } from '../../wire/admin.ts'
import type { MigrationProgress } from '../../wire/control.ts'
import type { ErrorBody } from '../../wire/errors.ts'
import type { Alert, EnrolmentAsked, HomeChange, PolicyDecision } from '../../wire/events.ts'
import type { Log } from '../../wire/log.ts'
import type { Phase } from './phases.ts'

/** A handoff as the fronts see it. */
export type HandoffView = {
  id: string
  vm: string
  epoch: number
  source: string
  target: string
  phase: Phase
  /** Unix ms. */
  updatedAt: number
  /** Until when room is held, while it is. */
  untilMs: number | undefined
  error: ErrorBody | undefined
  /** Undefined as long as it has none. */
  migration: MigrationRecord | undefined
}

export type GatewayEvent =
  /** Connected, gone, or said something new of itself. */
  | { event: 'site'; site: string }
  /** A migration has a new state. */
  | { event: 'migration'; migration: MigrationRecord }
  | { event: 'progress'; migration: MigrationRecord; progress: MigrationProgress }
  /** Its record has been dropped: nobody will ask for it again. */
  | { event: 'forgotten'; migrationId: string }
  | { event: 'pin'; vm: string; pinned: boolean }
  /**
   * A handoff has come to a new phase; `before`: the one that was reported last. Each phase is reported once, and
   * none goes back.
   */
  | { event: 'handoff'; handoff: HandoffView; before: Phase | undefined }
  /** Begun, or ended. */
  | { event: 'prestage'; prestage: PrestageRecord }
  | { event: 'home'; change: HomeChange }
  | { event: 'alert'; alert: Alert }
  | { event: 'decision'; decision: PolicyDecision }
  /** A site asks for its first certificate. */
  | { event: 'enrolment'; enrolment: EnrolmentAsked }

export type Events = {
  emit(event: GatewayEvent): void
  /** Gives what ends it. */
  subscribe(listener: (event: GatewayEvent) => void): () => void
}

export function createEvents(log: Log): Events {
  const listeners = new Set<(event: GatewayEvent) => void>()
  return {
    emit(event) {
      for (const listener of listeners) {
        try {
          listener(event)
        } catch (error) {
          log.error('event listener failed', { event: event.event, error })
        }
      }
    },
    subscribe(listener) {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
}
