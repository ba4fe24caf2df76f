// What a migration will take, before it begins. Enters: the VM's memory and dirty rate, the path's bandwidth, what is already there. Leaves: times
// and bytes. Pure. Pre-copy as a geometric series (r = dirty rate / bandwidth): T_pre = (M/B)(1-r^n)/(1-r), T_down = M r^n / B + T_switch.

export type CostInputs = {
  memoryBytes: number
  dirtyBytesPerSecond: number
  bandwidthBytesPerSecond: number
  /** Content of a staged copy that is still right; 0 without one. */
  stagedBytes: number
}
export type CostLimits = { switchMs: number; downtimeMs: number; roundsMax: number }

export type MigrationCost = {
  /** r: below 1 pre-copy converges. */
  ratio: number
  rounds: number
  precopyMs: number
  downtimeMs: number
  totalMs: number
  bytes: number
}

export function migrationCost(inputs: CostInputs, limits: CostLimits): MigrationCost {
  const bandwidth = inputs.bandwidthBytesPerSecond
  const ratio = inputs.dirtyBytesPerSecond / bandwidth
  const firstMs = (Math.max(0, inputs.memoryBytes - inputs.stagedBytes) / bandwidth) * 1000
  const rounds = roundsFor(firstMs, ratio, limits)
  const left = ratio ** rounds
  const precopyMs = ratio === 1 ? firstMs * rounds : (firstMs * (1 - left)) / (1 - ratio)
  const lastMs = firstMs * left
  return {
    ratio,
    rounds,
    precopyMs,
    downtimeMs: lastMs + limits.switchMs,
    totalMs: precopyMs + lastMs + limits.switchMs,
    bytes: ((precopyMs + lastMs) / 1000) * bandwidth,
  }
}

/** The first round whose rest fits into the downtime; all that are allowed when none does. */
function roundsFor(firstMs: number, ratio: number, { downtimeMs, roundsMax }: CostLimits): number {
  if (firstMs <= 0 || ratio <= 0) return 1
  if (ratio >= 1) return 1
  return Math.min(roundsMax, Math.max(1, Math.ceil(Math.log(downtimeMs / firstMs) / Math.log(ratio))))
}

/** What of a staged copy is still right: the guest has been rewriting pages since. */
export function freshBytes(stagedBytes: number, ageMs: number, dirtyBytesPerSecond: number): number {
  return Math.max(0, stagedBytes - (Math.max(0, ageMs) / 1000) * dirtyBytesPerSecond)
}
