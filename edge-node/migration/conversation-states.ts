// Where the source stands in its conversation with the target: a transition table. Pure: an event enters, the next
// state and the effects leave.
//
//   OPENING -meet-> OPEN -carry-> OFFERED -accept-> CARRYING -settle-> SETTLED
//
//   CARRYING -loss-> AWAY -meet-> CARRYING
//   CARRYING -changeOver-> CHANGING -quiet, loss-> CROSSING -meet-> CARRYING
//                          CHANGING -stay-> CARRYING        CROSSING -stay-> AWAY
//
// Always holds: a lost meeting is followed by another one only between accept and settle; before and after, its loss
// fails the migration. At most one attempt to meet again is under way (CHANGING and CROSSING, or AWAY). A pair that
// the table does not list is MIGRATION_STATE.
import { type ErrorCode, GodwitError } from '../../wire/errors.ts'

export type ConversationState =
  /** The first handshake is under way. */
  | 'OPENING'
  /** The first meeting has its control stream and no data streams. */
  | 'OPEN'
  /** Data streams carry pages; the target has not accepted the offer yet. */
  | 'OFFERED'
  /** The target has accepted, and a meeting carries. */
  | 'CARRYING'
  /** A change-over is under way; the old meeting still carries. */
  | 'CHANGING'
  /** A change-over is under way; the old meeting has ended. */
  | 'CROSSING'
  /** The link is lost, and the source reconnects. */
  | 'AWAY'
  /** The target has loaded everything. */
  | 'SETTLED'

export type ConversationEvent =
  /** A handshake is complete, and for a later meeting: both sides know where the other one stands. */
  | 'meet'
  /** The first meeting's data streams are open. */
  | 'carry'
  | 'accept'
  | 'settle'
  /** Another connection carries better, or the session keys have expired. */
  | 'changeOver'
  /** What was in flight over the old meeting has arrived, or had its time. */
  | 'quiet'
  /** A change-over has failed. */
  | 'stay'
  /** The control stream, or a write to a data stream, has failed. */
  | 'loss'
  /** A data stream has ended by itself. */
  | 'streamEnd'

export type ConversationEffect =
  /** Ends the migration with the error. */
  | 'fail'
  /** Keeps the error until the target accepts: if it refuses, its own reason counts. */
  | 'keepError'
  /** Handles the end of the stream as a loss. */
  | 'lose'
  /** Gives the lost meeting up. */
  | 'drop'
  /** Ends the old meeting in order. */
  | 'leave'
  | 'reconnect'
  | 'meetAgain'

type Step = { to: ConversationState; effects: readonly ConversationEffect[] } | { refuse: ErrorCode; because: string }
const go = (to: ConversationState, ...effects: ConversationEffect[]): Step => ({ to, effects })

export const conversation: Record<ConversationState, Partial<Record<ConversationEvent, Step>>> = {
  OPENING: { meet: go('OPEN') },
  OPEN: { carry: go('OFFERED'), changeOver: go('OPEN'), loss: go('OPEN', 'fail') },
  OFFERED: {
    accept: go('CARRYING'),
    changeOver: go('OFFERED'),
    loss: go('OFFERED', 'fail'),
    streamEnd: go('OFFERED', 'keepError'),
  },
  CARRYING: {
    changeOver: go('CHANGING', 'meetAgain'),
    loss: go('AWAY', 'drop', 'reconnect'),
    streamEnd: go('CARRYING', 'lose'),
    settle: go('SETTLED'),
  },
  CHANGING: {
    quiet: go('CROSSING', 'leave'),
    stay: go('CARRYING'),
    changeOver: go('CHANGING'),
    // The change-over goes on, and reconnects by itself.
    loss: go('CROSSING', 'drop'),
    streamEnd: go('CHANGING', 'lose'),
    settle: go('SETTLED'),
  },
  CROSSING: {
    meet: go('CARRYING'),
    stay: go('AWAY', 'reconnect'),
    changeOver: go('CROSSING'),
    // All streams of a lost link fail; the first failure has been handled.
    loss: go('CROSSING'),
    settle: go('SETTLED'),
  },
  AWAY: { meet: go('CARRYING'), changeOver: go('AWAY'), loss: go('AWAY'), settle: go('SETTLED') },
  SETTLED: {
    meet: { refuse: 'STREAM_RESET', because: 'the migration needs no new meeting' },
    // LOADED has come while a change-over waited.
    quiet: go('SETTLED', 'leave'),
    stay: go('SETTLED'),
    changeOver: go('SETTLED'),
    loss: go('SETTLED', 'fail'),
    streamEnd: go('SETTLED'),
  },
}

/** The next state, and what to do, in order. MIGRATION_STATE for a pair that the table does not list. */
export function stepConversation(
  state: ConversationState,
  event: ConversationEvent,
): { state: ConversationState; effects: readonly ConversationEffect[] } {
  const found = conversation[state][event]
  if (!found) throw new GodwitError('MIGRATION_STATE', `event '${event}' is not valid in state ${state} of the conversation`)
  if ('refuse' in found) throw new GodwitError(found.refuse, found.because)
  return { state: found.to, effects: found.effects }
}

const CARRIES: ReadonlySet<ConversationState> = new Set<ConversationState>(['OFFERED', 'CARRYING', 'CHANGING'])
const HEALS: ReadonlySet<ConversationState> = new Set<ConversationState>(['CARRYING', 'CHANGING', 'CROSSING', 'AWAY'])

/** Whether the data streams of a meeting are open and count. */
export const carries = (state: ConversationState): boolean => CARRIES.has(state)

/** Whether a lost meeting is followed by another one, which repeats what did not arrive. */
export const heals = (state: ConversationState): boolean => HEALS.has(state)
