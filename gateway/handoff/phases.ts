// The phase of a handoff, and what the standards call it: one table for MQTT, ETSI MEC 021, 3GPP EDGEAPP and ETSI MEC
// 010-2. Pure.
// Enters: a handoff's state. Leaves: its phase and the standards' words.
// Sources: ETSI GS MEC 021 V2 (mobilityStatus,
// contextTransferState), 3GPP TS 23.558 and 29.558 (application context relocation), ETSI GS MEC 010-2 V2 (application
// lifecycle). The mapping is ours: no standard knows a VM whose memory moves.

import type { Phase, Standards } from '../../mqtt/schemas.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { PHASE_COMMITTED } from '../../wire/control.ts'
import type { z } from '../../wire/schema.ts'
import type { HandoffState } from './transitions.ts'

export type { Phase } from '../../mqtt/schemas.ts'

type StandardsWords = {
  mec021: z.infer<typeof Standards.mec021>
  acr: string[]
  mec010: z.infer<typeof Standards.mec010>
}

/**
 * `seq` rises with the phase, so that a reader knows the newer of two statuses, after a replay and after a restart
 * as well.
 */
type Row = StandardsWords & { seq: number; over: boolean }

export const PHASES: Record<Phase, Row> = {
  proposed: { seq: 1, over: false, mec021: {}, acr: ['ACR_MONITORING'], mec010: {} },
  prestaging: {
    seq: 2,
    over: false,
    mec021: {},
    acr: ['servContPlanInd', 'predictExpTime'],
    mec010: { target: 'instantiate PROCESSING' },
  },
  precopy: { seq: 3, over: false, mec021: { mobilityStatus: 'INTERHOST_MOVEOUT_TRIGGERED' }, acr: ['initiate', 'ACT_START'], mec010: {} },
  switchover: {
    seq: 4,
    over: false,
    mec021: { contextTransferState: 'NOT_TRANSFERRED' },
    acr: ['UP_PATH_CHG', 'EARLY'],
    mec010: { target: 'operate STARTED' },
  },
  completed: {
    seq: 5,
    over: true,
    mec021: { mobilityStatus: 'INTERHOST_MOVEOUT_COMPLETED', contextTransferState: 'USER_CONTEXT_TRANSFER_COMPLETED' },
    acr: ['ACT_STOP', 'ACR_COMPLETE'],
    mec010: { target: 'COMPLETED', source: 'terminate GRACEFUL' },
  },
  failed: {
    seq: 5,
    over: true,
    mec021: { mobilityStatus: 'INTERHOST_MOVEOUT_FAILED' },
    acr: ['FAILED', 'OTHER'],
    mec010: { target: 'FAILED' },
  },
  cancelled: {
    seq: 5,
    over: true,
    mec021: { mobilityStatus: 'INTERHOST_MOVEOUT_FAILED' },
    acr: ['ACR_CANCELLATION'],
    mec010: { target: 'FAILED' },
  },
}

/** What a node calls the time from stopping the guest to running it elsewhere. */
const SWITCHOVER = new Set(['switchover', PHASE_COMMITTED, 'resuming'])

export function phaseOf({ state, outcome, progress }: { state: HandoffState } & Pick<MigrationRecord, 'outcome' | 'progress'>): Phase {
  switch (state) {
    case 'PRESTAGING':
    case 'PREPARED':
      return 'prestaging'
    case 'PROPOSED':
    case 'INTENT':
    case 'PREPARING':
      return 'proposed'
    case 'STREAMING':
      return progress && SWITCHOVER.has(progress.phase) ? 'switchover' : 'precopy'
    case 'COMMIT_SEEN':
      return 'switchover'
    case 'DONE':
      return 'completed'
    case 'WASTED':
    case 'WITHDRAWN':
      return 'cancelled'
    case 'REFUSED':
      return 'failed'
    case 'ABORTED':
      return outcome === 'cancelled' ? 'cancelled' : 'failed'
  }
}

export function standardsOf(phase: Phase): StandardsWords {
  const { mec021, acr, mec010 } = PHASES[phase]
  return { mec021, acr, mec010 }
}
