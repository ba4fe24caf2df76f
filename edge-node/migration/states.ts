// Who owns a VM during a migration: two transition tables, source and target (design: exactly one running copy). Pure.
// Always holds: the source leaves QUIESCED for RELINQUISHED only when its QEMU can no longer resume by itself and a
// matching LOADED has come; the target runs only from RESUMING, which only a GRANT leads to. Everything before
// RELINQUISHED ends with the VM running at the source.
import { GodwitError } from '../../wire/errors.ts'

export const SOURCE = {
  RUNNING: { offer: 'OFFERED', abort: 'ABORTED' },
  OFFERED: { accepted: 'STREAMING', abort: 'ABORTED' },
  STREAMING: { quiesced: 'QUIESCED', abort: 'ABORTED' },
  QUIESCED: { loaded: 'RELINQUISHED', abort: 'ABORTED' },
  RELINQUISHED: { running: 'RETIRED', refused: 'RECLAIMED' },
  RETIRED: {},
  RECLAIMED: {},
  ABORTED: {},
} as const

export const TARGET = {
  IDLE: { offer: 'RESERVED' },
  RESERVED: { pages: 'RECEIVING', abort: 'REFUSED' },
  RECEIVING: { loaded: 'LOADED', abort: 'REFUSED' },
  LOADED: { grant: 'GRANTED', abort: 'REFUSED' },
  GRANTED: { resume: 'RESUMING', abort: 'REFUSED' },
  RESUMING: { running: 'RUNNING' },
  RUNNING: {},
  REFUSED: {},
} as const

export type SourceState = keyof typeof SOURCE
export type TargetState = keyof typeof TARGET

type Table = Record<string, Record<string, string>>

/** The state that `event` leads to. An unlisted pair is MIGRATION_STATE. */
export function next<State extends string>(table: Table, state: State, event: string): State {
  const to = table[state]?.[event]
  if (to === undefined) throw new GodwitError('MIGRATION_STATE', `event '${event}' is not valid in state ${state}`)
  return to as State
}

/** Whether the source may still take the VM back by itself. */
export const sourceMayResume = (state: SourceState): boolean => state !== 'RELINQUISHED' && state !== 'RETIRED'
