// The life of a handoff, from its proposal to its end. Pure. Enters: a state and an event. Leaves: the next state and
// the effects to perform.
//
//   PROPOSED --ask--> PRESTAGING --held--> PREPARED --lapsed / elsewhere--> WASTED
//      |                  | |                 |   `--cancel--------------> WITHDRAWN
//      |                  | `--refused--> REFUSED
//      `------ move ------+------- move ------'
//                         v
//   INTENT --begin--> PREPARING --targetReady--> STREAMING --oneCompleted--> COMMIT_SEEN --bothCompleted--> DONE
//      \                  \                          \                                        \
//       `-----------------------------------------------------------------------------------------> ABORTED
//
// `committed` leads from STREAMING to COMMIT_SEEN as `oneCompleted` does.
// Always holds: a handoff keeps its id through all of this; from INTENT on its state is on the disk, and before that it
// is not. `save` comes before any effect that another party can see (a crash in between repeats the effect and never
// invents one). The gateway decides nothing about ownership: it asks, receives answers and writes them down. To cancel
// is to ask the source, which alone can agree.

import type { MigrationState } from '../../wire/admin.ts'
import { type ErrorCode, GodwitError } from '../../wire/errors.ts'

/** Before the migration begins: nothing of it is on the disk. */
const PRESTAGED_STATES = ['PROPOSED', 'PRESTAGING', 'PREPARED'] as const
/** How a handoff ends without a migration: its room was not used, its target refused, or it was cancelled. */
const UNUSED_STATES = ['WASTED', 'REFUSED', 'WITHDRAWN'] as const
export type HandoffState = (typeof PRESTAGED_STATES)[number] | MigrationState | (typeof UNUSED_STATES)[number]

export type HandoffEventName =
  /** Source and target are asked whether the target can take the VM, and to hold room; again: for longer. */
  | 'ask'
  | 'held'
  | 'refused'
  /** The time for which room is held is over. */
  | 'lapsed'
  /** The VM is not where it was any more, or another handoff takes its place. */
  | 'elsewhere'
  /** The migration is wanted. */
  | 'move'
  /** The disk refused the intent. */
  | 'unwritten'
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
  /** An operator has given one of the two sites up. */
  | 'siteForgotten'
  /** An effect failed: the disk refused the record, or no session is free. */
  | 'givenUp'

export type Effect =
  | 'askForRoom'
  /** Room is held for a time; then it lapses. */
  | 'startLease'
  /** The pre-staging has served: its room is the migration's. */
  | 'useRoom'
  /** The target need not hold room any more. */
  | 'release'
  /** It ends before any migration: reported, and forgotten. */
  | 'drop'
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

type Step = { to: HandoffState; effects: Effect[] } | { refuse: ErrorCode; because: string }
const go = (to: HandoffState, ...effects: Effect[]): Step => ({ to, effects })
const late: Step = { refuse: 'MIGRATION_LATE', because: 'the VM has been handed over' }

const moved = go('INTENT', 'save', 'useRoom')
const wasted = go('WASTED', 'release', 'drop')
const withdrawn = go('WITHDRAWN', 'release', 'drop')

const done = go('DONE', 'save', 'closeSession', 'finish')
const aborted = go('ABORTED', 'save', 'release', 'finish')
const failed = go('ABORTED', 'save', 'closeSession', 'cancelTarget', 'release', 'finish')
const doubt = go('ABORTED', 'save', 'closeSession', 'alarm', 'release', 'finish')

/** After the end, late messages are acknowledged and change nothing. */
const ended = (state: 'DONE' | 'ABORTED'): Partial<Record<HandoffEventName, Step>> => ({
  unwritten: go(state),
  givenUp: go(state),
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
  siteForgotten: go(state),
})

export const transitions: Record<HandoffState, Partial<Record<HandoffEventName, Step>>> = {
  PROPOSED: { ask: go('PRESTAGING', 'askForRoom'), move: moved },
  PRESTAGING: {
    ask: go('PRESTAGING', 'askForRoom'),
    held: go('PREPARED', 'startLease'),
    refused: go('REFUSED', 'drop'),
    elsewhere: wasted,
    cancel: withdrawn,
    move: moved,
  },
  PREPARED: {
    ask: go('PRESTAGING', 'askForRoom'),
    lapsed: wasted,
    elsewhere: wasted,
    cancel: withdrawn,
    move: moved,
  },
  WASTED: {},
  REFUSED: {},
  WITHDRAWN: {},
  INTENT: {
    begin: go('PREPARING', 'save', 'askTarget'),
    cancel: aborted,
    restart: aborted,
    siteForgotten: aborted,
    unwritten: wasted,
    givenUp: failed,
  },
  PREPARING: {
    targetReady: go('STREAMING', 'save', 'openSession', 'tellSource'),
    targetRefused: failed,
    cancel: failed,
    // The source was never told: nothing can have begun.
    restart: failed,
    siteForgotten: failed,
    givenUp: failed,
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
    siteForgotten: failed,
    givenUp: failed,
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
    siteForgotten: go('ABORTED', 'save', 'closeSession', 'release', 'finish'),
    givenUp: failed,
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

/** The next state and the effects, in order. MIGRATION_LATE, or MIGRATION_STATE for an event that does not fit. */
export function stepHandoff(state: HandoffState, event: HandoffEventName): { state: HandoffState; effects: Effect[] } {
  const found = transitions[state][event]
  if (!found) throw new GodwitError('MIGRATION_STATE', `event '${event}' is not valid in state ${state} of a handoff`)
  if ('refuse' in found) throw new GodwitError(found.refuse, found.because)
  return { state: found.to, effects: found.effects }
}

const isAmong = <S extends HandoffState>(states: readonly S[], state: HandoffState): state is S =>
  (states as readonly string[]).includes(state)

export const isPrestaged = (state: HandoffState): boolean => isAmong(PRESTAGED_STATES, state)
export const isOver = (state: HandoffState): boolean => state === 'DONE' || state === 'ABORTED' || isAmong(UNUSED_STATES, state)
