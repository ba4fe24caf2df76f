// What enters the handoff policy and what leaves it. Times are ms of one clock, whichever the caller has; sites and VMs
// are named by their ids.
import type { MigrationCost } from '../../planning/cost.ts'
import type { PolicyName, VmPolicy } from './settings.ts'

export type Observation =
  /**
   * A VM as its site reports it. Also says where it is: a change that the policy did not ask for counts as a move by
   * hand.
   */
  | { kind: 'vm'; vm: string; site: string; memoryBytes: number; dirtyBytesPerSecond?: number; policy?: VmPolicy }
  | { kind: 'vm-gone'; vm: string }
  /**
   * Where the VM's user enters the network, the RTT as the user measures it, and the user's place. Absent fields keep
   * their last value.
   */
  | { kind: 'user'; vm: string; site: string; rttMs?: number; lat?: number; lon?: number }
  /** `isEligible`: VMs may be moved there. `tokens`: migrations at once, instead of the default. */
  | { kind: 'site'; site: string; isEligible?: boolean; tokens?: number; lat?: number; lon?: number }
  /** Between two sites: RTT both ways, bandwidth `from` -> `to`. */
  | { kind: 'link'; from: string; to: string; rttMs?: number; bandwidthBytesPerSecond?: number }
  /** A migration that somebody else began. Those that the policy decided count from the decision. */
  | { kind: 'started'; vm: string; to: string }
  | { kind: 'ended'; vm: string; outcome: 'completed' | 'failed' | 'refused' | 'cancelled' }
  /** How much of the VM is staged at a site; 0 when the copy is gone. `isDone` when no more is coming. */
  | { kind: 'staged'; vm: string; site: string; bytes: number; isDone: boolean }
  /**
   * A 'prepare' has been carried out, or refused, with so many bytes: the rest of what was set aside for it is free
   * again.
   */
  | { kind: 'prepared'; vm: string; sentBytes: number }
  /** A site has refused the VM: it is no target of it for so long. */
  | { kind: 'unfit'; vm: string; site: string; forMs: number }

/** In the order they are asked. `none`: all open. */
export const GATES = [
  'none',
  'policy',
  'pinned',
  'unknown',
  'stale',
  'moving',
  'backoff',
  'best',
  'hysteresis',
  'trigger',
  'feasible',
  'residence',
  'cost',
  'jitter',
  'tokens',
] as const
export type GateName = (typeof GATES)[number]

/** One gate's finding: it is open when `value` keeps to `limit` as `rule` says. */
export type GateLine = { gate: GateName; isOpen: boolean; rule: string; value: number | null; limit: number | null; unit: string }

export type PredictionFacts = { site: string; probability: number; tauMs: number }

export type Explanation = {
  vm: string
  atMs: number
  policy: PolicyName
  action: 'stay' | 'prepare' | 'move'
  from: string | null
  userSite: string | null
  /** The site that would be best for the user now. */
  target: string | null
  /** The first gate that said no; `none` for a move. */
  gate: GateName
  /** One sentence for people. */
  because: string
  inputs: {
    rttMs: number | null
    regretMs: number
    smoothedRegretMs: number
    accountMsSeconds: number
    sinceArrivalMs: number | null
    memoryBytes: number
    dirtyBytesPerSecond: number
    bandwidthBytesPerSecond: number | null
    stagedBytes: number
    cost: MigrationCost | null
    previousSite: string | null
    /** Sites that have refused the VM. */
    unfitSites: string[]
    prediction: PredictionFacts | null
  }
  thresholds: { sloMs: number | null; hardLimitMs: number | null; hysteresisMs: number; triggerMs: number; priceMsSeconds: number | null }
  gates: GateLine[]
}

type DecisionBase = { vm: string; atMs: number; from: string; to: string; explanation: Explanation }
export type VmDecision =
  /** `sequence` counts a VM's moves: the next is never decided before the last has ended. */
  | (DecisionBase & { action: 'move'; sequence: number })
  | (DecisionBase & { action: 'prepare'; bytes: number; probability: number; tauMs: number; keepMs: number })
  /**
   * Only where the engine is told to report them, and only when the gate that holds the VM has changed. `to` is where
   * it would go.
   */
  | (DecisionBase & { action: 'stay'; gate: GateName })
