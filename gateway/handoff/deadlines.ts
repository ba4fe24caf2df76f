// How long a handoff may stand still in each state before the gateway's watchdog acts. The agents have deadlines of
// their own (edge-node/migration/deadlines.ts) and end first: these are longer, for what only the gateway can see.
import { MINUTE_MS } from '../../wire/units.ts'
import type { HandoffState } from './transitions.ts'

const NEVER = { ms: Number.POSITIVE_INFINITY, action: 'report' } as const

/**
 * `abort`: before the source was told; nothing can have begun. `cancel`: both sites are asked to end it, and the
 * source decides. `forward`: the sites may meet again, and their reports are judged again. `report`: only a log
 * line and the metric, because the record is being written.
 */
type StuckAction = 'abort' | 'cancel' | 'forward' | 'report'

export const HANDOFF_DEADLINES: Record<HandoffState, { ms: number; action: StuckAction }> = {
  PROPOSED: NEVER,
  // Source and target are being asked.
  PRESTAGING: { ms: 3 * MINUTE_MS, action: 'abort' },
  // Beyond the time for which room is held. The target's lease lapses by itself.
  PREPARED: { ms: MINUTE_MS, action: 'abort' },
  INTENT: { ms: 2 * MINUTE_MS, action: 'report' },
  PREPARING: { ms: 5 * MINUTE_MS, action: 'abort' },
  // From the last progress. Longer than the longest patience of a node (an hour and a half with limits.reconnectSeconds
  // at its most).
  STREAMING: { ms: 120 * MINUTE_MS, action: 'cancel' },
  COMMIT_SEEN: { ms: 30 * MINUTE_MS, action: 'forward' },
  DONE: NEVER,
  ABORTED: NEVER,
  WASTED: NEVER,
  REFUSED: NEVER,
  WITHDRAWN: NEVER,
}
