// One VM at one moment, gathered for the gates and for the explanation: the same numbers decide and are shown. Pure
// reading; nothing changes here.
import { freshBytes, type MigrationCost, migrationCost } from '../../planning/cost.ts'
import { followGates, type GateInputs, latencyGates, noGates, regretGates } from './gates.ts'
import { POLICY_NAMES, type PolicyName, type PolicySettings } from './settings.ts'
import type { SiteTable } from './sites.ts'
import type { GateLine, GateName } from './types.ts'
import type { Unfit } from './unfit.ts'
import type { VmTable } from './vm-table.ts'

export type Tables = { settings: PolicySettings; sites: SiteTable; vms: VmTable; unfit: Unfit }
export type FullView = GateInputs & { cost: MigrationCost | undefined; bandwidthBytesPerSecond: number; stagedBytes: number }

export const policyAt = ({ vms }: Tables, index: number): PolicyName => POLICY_NAMES[vms.columns.policy[index]!] ?? 'regret'

/** RTT that users of `userSite` would save if the VM were at `target`. NaN where an RTT is not known. */
function regretAt(sites: SiteTable, userSite: number, from: number, target: number): number {
  const [now, then] = [sites.rtt(userSite, from), sites.rtt(userSite, target)]
  return Number.isFinite(now) && Number.isFinite(then) ? Math.max(0, now - then) : Number.NaN
}

export function viewOf(tables: Tables, index: number, nowMs: number): FullView {
  const { settings, sites, vms } = tables
  const c = vms.columns
  const [from, userSite] = [c.site[index]!, c.userSite[index]!]
  const target = userSite < 0 ? -1 : tables.unfit.best(sites, index, userSite, nowMs)
  const hasWay = from >= 0 && target >= 0 && target !== from
  const stagedBytes = hasWay ? stagedAt(tables, index, target, nowMs) : 0
  const bandwidthBytesPerSecond = hasWay ? sites.bandwidth(from, target) : Number.NaN
  const [memoryBytes, dirtyBytesPerSecond] = [c.memoryBytes[index]!, c.dirtyBytesPerSecond[index]!]
  const cost = hasWay ? migrationCost({ memoryBytes, dirtyBytesPerSecond, bandwidthBytesPerSecond, stagedBytes }, settings.cost) : undefined
  const isLatency = policyAt(tables, index) === 'latency'
  const minimumMs = isLatency ? settings.latency.residenceMs : settings.regret.residenceMs
  const perMigration = isLatency ? 0 : settings.regret.residencePerMigration
  return {
    isPinned: c.isPinned[index] === 1,
    from,
    userSite,
    target,
    ageMs: nowMs - c.seenMs[index]!,
    isMoving: c.movingTo[index]! >= 0,
    backoffLeftMs: c.backoffUntilMs[index]! - nowMs,
    regretMs: from < 0 || target < 0 ? 0 : regretAt(sites, userSite, from, target),
    smoothedRegretMs: c.smoothedRegretMs[index]!,
    accountMsSeconds: c.accountMsSeconds[index]!,
    hysteresisMs: c.hysteresisMs[index]!,
    aboveMs: nowMs - c.aboveSinceMs[index]!,
    rttMs: c.smoothedRttMs[index]!,
    thresholdMs: thresholdOf(tables, index),
    hardLimitMs: c.hardLimitMs[index]!,
    ratio: cost?.ratio ?? 0,
    sinceArrivalMs: nowMs - c.arrivedMs[index]!,
    residenceMs: Math.max(minimumMs, perMigration * (cost?.totalMs ?? 0)),
    priceMsSeconds: cost ? priceOf(tables, index, cost, target, nowMs) : 0,
    cost,
    bandwidthBytesPerSecond,
    stagedBytes,
  }
}

/** The first gate that is closed for this VM now, as its policy asks them. */
export function gateOf(tables: Tables, index: number, view: GateInputs, lines?: GateLine[]): GateName {
  const policy = policyAt(tables, index)
  if (policy === 'regret') return regretGates(view, tables.settings, lines)
  if (policy === 'latency') return latencyGates(view, tables.settings, lines)
  return policy === 'follow-cell' ? followGates(view, tables.settings, lines) : noGates(lines)
}

/** The RTT above which the latency policy acts. */
export function thresholdOf({ settings, vms }: Tables, index: number): number {
  const slo = vms.columns.sloMs[index]!
  return Number.isNaN(slo) ? settings.latency.thresholdMs : slo
}

/** What of a staged copy at `target` is still right. */
function stagedAt({ settings, vms }: Tables, index: number, target: number, nowMs: number): number {
  const c = vms.columns
  const ageMs = nowMs - c.stagedMs[index]!
  if (c.stagedSite[index] !== target || ageMs > settings.prestage.keepMs) return 0
  return freshBytes(c.stagedBytes[index]!, ageMs, c.dirtyBytesPerSecond[index]!)
}

/** C_mig = k_d T_down + k_b bytes, doubled on the way back to where the VM has just been. */
function priceOf({ settings, vms }: Tables, index: number, cost: MigrationCost, target: number, nowMs: number): number {
  const { costPerDowntimeMs, costPerGigabyte, returnWithinMs, returnFactor } = settings.regret
  const price = costPerDowntimeMs * cost.downtimeMs + costPerGigabyte * (cost.bytes / 1e9)
  const isReturn = vms.columns.previousSite[index] === target && nowMs - vms.columns.previousLeftMs[index]! < returnWithinMs
  return isReturn ? price * returnFactor : price
}
