// The life of a migration as the gateway sees it. Pure: an event in, the next state and the effects to perform out.
//
//   INTENT --begin--> PREPARING --targetReady--> STREAMING --oneCompleted / committed--> COMMIT_SEEN --bothCompleted--> DONE
//      \                  \                          \                                        \
//       `-----------------------------------------------------------------------------------------> ABORTED
//
// Always holds: `save` comes before any effect that another party can see (a crash in between repeats the effect, never invents one); the
// gateway decides nothing about ownership: it asks, it hears, it writes down. Cancelling is asking the source, which alone can say yes.

import type { MigrationState } from '../../wire/admin.ts'
import { type ErrorCode, GodwitError } from '../../wire/errors.ts'

export type MigrationEventName =
  | 'begin'
  | 'targetReady'
  | 'targetRefused'
  | 'sourceAccepted'
  | 'sourceRefused'
  /** No answer from the source: it may have begun. */
  | 'sourceUnsure'
  | 'cancel'
  /** The source says it has handed the VM over. */
  | 'committed'
  | 'oneCompleted'
  | 'bothCompleted'
  | 'sourceFailed'
  /** The target has failed or forgotten; the source has not ended yet. */
  | 'targetFailed'
  /** The source has forgotten; the target is still busy. */
  | 'sourceGone'
  /** What the two sites say does not fit together. */
  | 'contradiction'
  | 'restart'

export type Effect =
  | 'save'
  | 'askTarget'
  | 'openSession'
  | 'tellSource'
  | 'cancelSource'
  /** After a grace: the source usually learns of it by itself, and says more. */
  | 'cancelSourceSoon'
  | 'cancelTarget'
  | 'closeSession'
  | 'alarm'
  | 'finish'

type Step = { to: MigrationState; effects: Effect[] } | { refuse: ErrorCode; because: string }
const go = (to: MigrationState, ...effects: Effect[]): Step => ({ to, effects })
const late: Step = { refuse: 'MIGRATION_LATE', because: 'the VM has been handed over' }

const done = go('DONE', 'save', 'closeSession', 'finish')
const failed = go('ABORTED', 'save', 'closeSession', 'cancelTarget', 'finish')
const doubt = go('ABORTED', 'save', 'closeSession', 'alarm', 'finish')

/** After the end, late words are acknowledged and change nothing. */
const ended = (state: 'DONE' | 'ABORTED'): Partial<Record<MigrationEventName, Step>> => ({
  targetReady: go(state),
  targetRefused: go(state),
  sourceAccepted: go(state),
  sourceRefused: go(state),
  sourceUnsure: go(state),
  committed: go(state),
  sourceFailed: go(state),
  targetFailed: go(state),
  sourceGone: go(state),
  restart: go(state),
})

export const transitions: Record<MigrationState, Partial<Record<MigrationEventName, Step>>> = {
  INTENT: {
    begin: go('PREPARING', 'save', 'askTarget'),
    cancel: go('ABORTED', 'save', 'finish'),
    restart: go('ABORTED', 'save', 'finish'),
  },
  PREPARING: {
    targetReady: go('STREAMING', 'save', 'openSession', 'tellSource'),
    targetRefused: failed,
    cancel: failed,
    // The source was never told: nothing can have begun.
    restart: failed,
  },
  STREAMING: {
    sourceAccepted: go('STREAMING'),
    sourceRefused: failed,
    sourceUnsure: go('STREAMING'),
    cancel: go('STREAMING', 'save', 'cancelSource'),
    committed: go('COMMIT_SEEN', 'save'),
    oneCompleted: go('COMMIT_SEEN', 'save'),
    bothCompleted: done,
    sourceFailed: failed,
    targetFailed: go('STREAMING', 'cancelSourceSoon'),
    sourceGone: go('STREAMING', 'cancelTarget'),
    contradiction: doubt,
    restart: go('STREAMING', 'openSession'),
  },
  COMMIT_SEEN: {
    sourceAccepted: go('COMMIT_SEEN'),
    sourceRefused: failed,
    sourceUnsure: go('COMMIT_SEEN'),
    cancel: late,
    committed: go('COMMIT_SEEN'),
    oneCompleted: go('COMMIT_SEEN'),
    bothCompleted: done,
    // The source may still take the VM back, if the target refused it before running it.
    sourceFailed: failed,
    targetFailed: go('COMMIT_SEEN'),
    sourceGone: go('COMMIT_SEEN'),
    contradiction: doubt,
    restart: go('COMMIT_SEEN', 'openSession'),
  },
  DONE: { ...ended('DONE'), cancel: late, oneCompleted: go('DONE'), bothCompleted: go('DONE'), contradiction: go('DONE', 'alarm') },
  ABORTED: {
    ...ended('ABORTED'),
    cancel: go('ABORTED'),
    oneCompleted: go('ABORTED', 'alarm'),
    bothCompleted: go('ABORTED', 'alarm'),
    contradiction: go('ABORTED', 'alarm'),
  },
}

/** The next state and what to do, in order. MIGRATION_LATE, or MIGRATION_STATE for an event that this state does not know. */
export function step(state: MigrationState, event: MigrationEventName): { state: MigrationState; effects: Effect[] } {
  const found = transitions[state][event]
  if (!found) throw new GodwitError('MIGRATION_STATE', `'${event}' does not fit a migration in state ${state}`)
  if ('refuse' in found) throw new GodwitError(found.refuse, found.because)
  return { state: found.to, effects: found.effects }
}

export const isOver = (state: MigrationState): boolean => state === 'DONE' || state === 'ABORTED'
