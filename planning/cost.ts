// What a migration will take, before it begins. Enters: the VM's memory and dirty rate, the path's bandwidth, what is already there. Leaves: times
// and bytes. Pure. Pre-copy as a geometric series (r = dirty rate / bandwidth): T_pre = (M/B)(1-r^n)/(1-r), T_down = M r^n / B + T_switch.

type CostInputs = {
  memoryBytes: number
  dirtyBytesPerSecond: number
  bandwidthBytesPerSecond: number
  /** Content of a staged copy that is still right; 0 without one. */
  stagedBytes: number
}
type CostLimits = { switchMs: number; downtimeMs: number; roundsMax: number }

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

/** What is known of a VM and of the way to its target, measured. */
export type PlanFacts = {
  memoryBytes: number
  /** Shares of memory, by samples: zero pages, and pages that another one in the sample equals (a lower bound). */
  zeroShare: number
  duplicateShare: number
  /** What content becomes by zstd 1, as a share of it. */
  compressedShare: number
  dirtyBytesPerSecond: number
  /** Of its local disks, what the target may lack; they travel before the guest stops. Default 0. */
  diskBytes?: number
  path: { bytesPerSecond: number; rttMs: number }
  downtimeMs: number
}

export type PlanMethod = {
  method: 'live' | 'live, throttled' | 'cold'
  /** The downtime asked for can be kept. */
  isPossible: boolean
  totalMs: number
  downtimeMs: number
  wireBytes: number
  /** How much the guest is slowed down towards the end, per cent. */
  throttlePercent: number
}

export type MigrationPlan = { methods: PlanMethod[]; recommended: PlanMethod['method']; reason: string }

/** Asking the gateway, the handshake, a waiting QEMU at the target: measured 0.5-0.8 s with QEMU 10.0 under TCG, plus round trips. */
const SETUP_MS = 600
const SETUP_ROUND_TRIPS = 6
/** Device state, load and resume. */
const SWITCH_MS = 60
const ROUNDS_MAX = 30
/** QEMU slows a guest down by at most this share. */
const THROTTLE_MAX = 0.95
/** With less, each round leaves a third of the one before. */
const CONVERGES = 1 / 3

/** Predicts each method by pre-copy's geometric series; all memory in guest bytes, carried at what compression makes of the path. */
export function planMigration(facts: PlanFacts): MigrationPlan {
  const { path, downtimeMs } = facts
  const share = Math.min(1, Math.max(0.01, facts.compressedShare))
  const contentBytes = facts.memoryBytes * Math.max(0, 1 - facts.zeroShare - facts.duplicateShare)
  const bandwidth = path.bytesPerSecond / share
  const setupMs = SETUP_MS + SETUP_ROUND_TRIPS * path.rttMs
  const switchMs = 1.5 * path.rttMs + SWITCH_MS
  const disks = diskCost(facts)
  const live = (throttle: number): PlanMethod => {
    const inputs = {
      memoryBytes: contentBytes,
      dirtyBytesPerSecond: facts.dirtyBytesPerSecond * (1 - throttle),
      bandwidthBytesPerSecond: bandwidth,
      stagedBytes: 0,
    }
    const cost = migrationCost(inputs, { switchMs, downtimeMs: Math.max(1, downtimeMs - switchMs), roundsMax: ROUNDS_MAX })
    return {
      method: throttle > 0 ? 'live, throttled' : 'live',
      isPossible: cost.ratio < 1 && cost.downtimeMs <= downtimeMs,
      totalMs: setupMs + disks.totalMs + cost.totalMs,
      downtimeMs: cost.downtimeMs,
      wireBytes: disks.wireBytes + cost.bytes * share,
      throttlePercent: Math.round(throttle * 100),
    }
  }
  const needed = 1 - (CONVERGES * bandwidth) / Math.max(1, facts.dirtyBytesPerSecond)
  const coldMs = (contentBytes / bandwidth) * 1000 + switchMs
  const cold = { method: 'cold', isPossible: coldMs <= downtimeMs, totalMs: setupMs + disks.totalMs + coldMs, downtimeMs: coldMs } as const
  const methods: PlanMethod[] = [
    live(0),
    live(Math.min(THROTTLE_MAX, Math.max(0.2, needed))),
    { ...cold, wireBytes: disks.wireBytes + contentBytes * share, throttlePercent: 0 },
  ]
  return { methods, ...recommend(methods as [PlanMethod, PlanMethod, PlanMethod], facts, bandwidth) }
}

/** A VM that does not run: its disks, and nothing that stands still meanwhile. */
export function planStopped(facts: Pick<PlanFacts, 'diskBytes' | 'path'>): MigrationPlan {
  const { totalMs, wireBytes } = diskCost({ ...facts, compressedShare: 1 })
  const setupMs = SETUP_MS + SETUP_ROUND_TRIPS * facts.path.rttMs
  const cold = { method: 'cold', isPossible: true, totalMs: setupMs + totalMs, downtimeMs: 0, wireBytes, throttlePercent: 0 } as const
  return { methods: [cold], recommended: 'cold', reason: 'the VM does not run: only its disks travel, and they count uncompressed' }
}

/** Disks are not sampled: their content is taken to compress as the memory does. */
function diskCost({ diskBytes = 0, compressedShare, path }: Pick<PlanFacts, 'diskBytes' | 'compressedShare' | 'path'>) {
  const wireBytes = diskBytes * Math.min(1, Math.max(0.01, compressedShare))
  return { wireBytes, totalMs: (wireBytes / path.bytesPerSecond) * 1000 }
}

function recommend(
  [live, throttled, cold]: [PlanMethod, PlanMethod, PlanMethod],
  { downtimeMs, dirtyBytesPerSecond, path }: PlanFacts,
  bandwidth: number,
): Pick<MigrationPlan, 'recommended' | 'reason'> {
  const rewriting = `the guest rewrites ${megabytes(dirtyBytesPerSecond)} MB/s, the path carries ${megabytes(bandwidth)} MB/s of guest memory`
  if (live.isPossible)
    return { recommended: 'live', reason: `${rewriting}: the rounds shrink, and the last one fits into ${downtimeMs} ms` }
  if (throttled.isPossible)
    return {
      recommended: 'live, throttled',
      reason: `${rewriting}: with the guest throttled by ${throttled.throttlePercent} % the last round fits`,
    }
  if (cold.isPossible) return { recommended: 'cold', reason: `the whole memory fits into ${downtimeMs} ms` }
  const least = Math.min(live.downtimeMs, throttled.downtimeMs, cold.downtimeMs)
  const best = [live, throttled, cold].find(method => method.downtimeMs === least)!
  const why = 1.5 * path.rttMs + SWITCH_MS > downtimeMs ? `round trips of ${Math.round(path.rttMs)} ms alone take longer` : rewriting
  return {
    recommended: best.method,
    reason: `no method meets ${downtimeMs} ms: ${why}; this one has a downtime of ${Math.round(least)} ms`,
  }
}

const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1)
