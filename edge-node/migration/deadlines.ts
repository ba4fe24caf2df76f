// How long a migration may stand still in each of its states before the agent's watchdog (watchdog.ts) ends it. One
// table for each side. Every one is longer than the patience that the code of that state has by itself (accept, load,
// grant, a lost link), so the watchdog ends only what has escaped all of those. Time counts from the last thing that
// arrived, or from the last part of a file that was read (either side may have to hash files in OFFERED and RESERVED),
// so a migration may take as long as it needs.
import { MINUTE_MS } from '../../wire/units.ts'
import type { SourceState, TargetState } from './states.ts'

/**
 * ENTERING: the slot is taken, the beginning is being written down. ASKING: the hand-over of an earlier story goes on.
 * FAILING: it has failed or was cancelled, and has not come to its end yet. ENDING: the VM is being taken back, or the
 * rest of it removed.
 */
export type SourceStage = SourceState | 'ENTERING' | 'ASKING' | 'FAILING' | 'ENDING'
export type TargetStage = TargetState | 'ENTERING' | 'FAILING' | 'ENDING'

/**
 * What the watchdog does. `abort`: before the commit; the source keeps the VM running, the target refuses. `forward`:
 * after it; the asking or the story begins anew from the records, nothing is guessed. `report`: only a log line and the
 * metric, because a record is being written or nothing is left to end.
 */
export type StuckAction = 'abort' | 'forward' | 'report'

type Row = {
  ms: number
  action: StuckAction /** The time that a link may be lost (limits.reconnectSeconds) is added. */
  isOverLink?: boolean
}

export const SOURCE_DEADLINES: Record<SourceStage, Row> = {
  ENTERING: { ms: 2 * MINUTE_MS, action: 'report' },
  RUNNING: { ms: 2 * MINUTE_MS, action: 'abort' },
  OFFERED: { ms: 5 * MINUTE_MS, action: 'abort', isOverLink: true },
  STREAMING: { ms: 5 * MINUTE_MS, action: 'abort', isOverLink: true },
  QUIESCED: { ms: 12 * MINUTE_MS, action: 'abort', isOverLink: true },
  RELINQUISHED: { ms: 12 * MINUTE_MS, action: 'forward' },
  ASKING: { ms: 5 * MINUTE_MS, action: 'forward' },
  RETIRED: { ms: 2 * MINUTE_MS, action: 'report' },
  RECLAIMED: { ms: 2 * MINUTE_MS, action: 'report' },
  ABORTED: { ms: 2 * MINUTE_MS, action: 'report' },
  FAILING: { ms: MINUTE_MS, action: 'abort' },
  ENDING: { ms: 3 * MINUTE_MS, action: 'report' },
}

export const TARGET_DEADLINES: Record<TargetStage, Row> = {
  ENTERING: { ms: 2 * MINUTE_MS, action: 'report' },
  IDLE: { ms: 5 * MINUTE_MS, action: 'abort' },
  RESERVED: { ms: 10 * MINUTE_MS, action: 'abort' },
  // The source decides, so the target waits longer: its QEMU may take ten minutes to load what has arrived.
  RECEIVING: { ms: 15 * MINUTE_MS, action: 'abort', isOverLink: true },
  LOADED: { ms: 15 * MINUTE_MS, action: 'abort' },
  GRANTED: { ms: 5 * MINUTE_MS, action: 'abort' },
  RESUMING: { ms: 2 * MINUTE_MS, action: 'forward' },
  RUNNING: { ms: 2 * MINUTE_MS, action: 'forward' },
  REFUSED: { ms: 2 * MINUTE_MS, action: 'report' },
  FAILING: { ms: MINUTE_MS, action: 'abort' },
  ENDING: { ms: 3 * MINUTE_MS, action: 'report' },
}

/** Of this side in this state, ms. */
export function deadlineMs(side: 'source' | 'target', state: string, reconnectMs: number): number {
  const row = side === 'source' ? SOURCE_DEADLINES[state as SourceStage] : TARGET_DEADLINES[state as TargetStage]
  return row.ms + (row.isOverLink ? 1.5 * reconnectMs : 0)
}
