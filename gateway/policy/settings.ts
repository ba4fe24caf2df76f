// What an operator can set of the handoff policy, with the defaults. Enters: a part of gateway.yaml or a scenario.
// Leaves: checked settings. Where a default comes from: CONTROL (H, TTT, smoothing, residence, return, feasibility,
// probability) or tuning on recorded drives (the prices k_d and k_b and the free regret l; docs/operate/policy.md says
// on which).
import { z } from '../../wire/schema.ts'

export const POLICY_NAMES = ['regret', 'never', 'latency', 'manual', 'follow-cell'] as const
/** `follow-cell` is for comparison in the simulator only: it moves the VM whenever the user's site changes. */
export type PolicyName = (typeof POLICY_NAMES)[number]
/** Those that a gateway may run. */
export const OPERATIONAL_POLICIES = ['regret', 'never', 'latency', 'manual'] as const

const amount = z.number().finite().nonnegative()
const positive = z.number().finite().positive()
const share = z.number().min(0).max(1)

const RegretSettings = z.strictObject({
  /** H where the VM has no SLO. */
  hysteresisMs: amount.default(4),
  /** H where it has one: this share of it. */
  hysteresisSloShare: share.default(0.15),
  /** TTT: how long the smoothed regret must stay above H. */
  triggerMs: amount.default(8000),
  /** l: regret that costs nothing. */
  freeMs: amount.default(2),
  /** k_d: regret (ms x s) that a ms of downtime is worth. */
  costPerDowntimeMs: amount.default(0.4),
  /** k_b: regret (ms x s) that a GB on the wire is worth. */
  costPerGigabyte: amount.default(100),
  residenceMs: amount.default(30_000),
  /** Residence is also at least this many times the migration's own predicted time. */
  residencePerMigration: amount.default(2),
  /** Going back to the site that the VM left less than this ago ... */
  returnWithinMs: amount.default(120_000),
  /** ... costs this many times as much. */
  returnFactor: z.number().min(1).default(2),
})

const LatencySettings = z.strictObject({
  /** Above the SLO (or this, for a VM without one) ... */
  thresholdMs: positive.default(50),
  /** ... until this much below it; and another site must be better by more than this. */
  hysteresisMs: amount.default(4),
  triggerMs: amount.default(3000),
  residenceMs: amount.default(0),
})

const CostSettings = z.strictObject({
  /** What the hand-over itself takes, on top of sending the last pages. */
  switchMs: amount.default(120),
  /** Pre-copy ends when what is left takes no longer than this. */
  downtimeMs: positive.default(300),
  roundsMax: z.number().int().min(1).max(30).default(8),
  /** Dirty rate over bandwidth must be below this, or pre-copy does not converge in time. */
  feasibleRatio: share.default(0.8),
  /** For site pairs that have not been measured. */
  bandwidthBytesPerSecond: positive.default(125_000_000),
})

const StormSettings = z.strictObject({
  /** Migrations that a site takes part in at once, as source or target. */
  tokensPerSite: z.number().int().min(1).max(1000).default(4),
  /** Spread of starts when more want a site than it has tokens. */
  jitterMs: amount.default(3000),
  /** After a failed migration its VM waits this long, doubling up to the second. */
  backoffMs: amount.default(30_000),
  backoffMaxMs: amount.default(600_000),
})

const PrestageSettings = z.strictObject({
  isEnabled: z.boolean().default(true),
  probability: share.default(0.6),
  /** What pre-staging may send for one VM in an hour, at most. The allowance starts full. */
  budgetBytesPerHour: amount.default(60e9),
  /** Pre-stagings that a site takes part in at once. */
  tokensPerSite: z.number().int().min(0).max(1000).default(2),
  /** A staged copy that has not been used by then is dropped. */
  keepMs: positive.default(120_000),
  /** A VM whose memory crosses in less than this is not sent ahead: there is nothing to gain. */
  worthMs: amount.default(1000),
  /** A VM's prediction is looked at this often. */
  everyMs: positive.default(2000),
})

export const PolicySettings = z.strictObject({
  policy: z.enum(POLICY_NAMES).default('regret'),
  /** D' and the smoothed RTT keep this much of their former value each second. */
  smoothing: z.number().min(0).max(0.999).default(0.8),
  /** A user who has not been heard of for this long decides nothing. */
  staleMs: positive.default(10_000),
  regret: RegretSettings.prefault({}),
  latency: LatencySettings.prefault({}),
  cost: CostSettings.prefault({}),
  storm: StormSettings.prefault({}),
  prestage: PrestageSettings.prefault({}),
  /** For the jitter; the same seed and observations give the same decisions. */
  seed: z.number().int().default(1),
})
export type PolicySettings = z.output<typeof PolicySettings>
export type PolicySettingsInput = z.input<typeof PolicySettings>

/** All defaults, with what is given. */
export const policySettings = (given: PolicySettingsInput = {}): PolicySettings => PolicySettings.parse(given)

/** What one VM's policy says. */
export const VmPolicy = z.strictObject({
  policy: z.enum(OPERATIONAL_POLICIES).optional(),
  sloMs: positive.max(60_000).optional(),
  /** A user's RTT above this does not wait for TTT. */
  hardLimitMs: positive.max(60_000).optional(),
  isPinned: z.boolean().optional(),
})
export type VmPolicy = z.infer<typeof VmPolicy>
