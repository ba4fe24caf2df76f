// One step of time for every VM: D', G, and how long what must be above its threshold has been. Enters: the tables, the
// time. Leaves: those VMs that might move, for the gates to be asked. Pure. This is the loop that 10,000 VMs go
// through, so it asks whether a gate is surely closed before it gathers what all gates want to see. Always holds: who
// is left out here, the gates would have refused (where stays are reported, nobody is left out whose reason to stay may
// have changed).
import { migrationCost } from '../../planning/cost.ts'
import { POLICY_NAMES } from './settings.ts'
import { GATES } from './types.ts'
import { type Tables, thresholdOf } from './view.ts'

const REGRET = POLICY_NAMES.indexOf('regret')
const LATENCY = POLICY_NAMES.indexOf('latency')
const FOLLOW = POLICY_NAMES.indexOf('follow-cell')
const BEST = GATES.indexOf('best')
const TRIGGER = GATES.indexOf('trigger')
const COST = GATES.indexOf('cost')
const HYSTERESIS = GATES.indexOf('hysteresis')

export function advance(tables: Tables, nowMs: number, elapsed: number, reportStays: boolean): number[] {
  const { settings, sites, vms, unfit } = tables
  const { site, userSite, seenMs, smoothedRegretMs, smoothedRttMs, rttMs, aboveSinceMs, movingTo, readySinceMs, policy, gate } = vms.columns
  const { rttMs: between, stride, best: bestOf } = sites.tables()
  const { staleMs } = settings
  const keep = settings.smoothing ** elapsed
  const active: number[] = []
  for (let index = 0; index < vms.end; index++) {
    const from = site[index]!
    if (from < 0) continue
    const user = userSite[index]!
    if (user < 0 || nowMs - seenMs[index]! > staleMs) {
      aboveSinceMs[index] = Number.NaN
      active.push(index)
      continue
    }
    const best = unfit.isEmpty ? bestOf[user]! : unfit.best(sites, index, user, nowMs)
    let regretMs = best < 0 || best === from ? 0 : between[user * stride + from]! - between[user * stride + best]!
    if (!(regretMs > 0 && regretMs < Number.POSITIVE_INFINITY)) regretMs = 0
    const before = smoothedRegretMs[index]!
    smoothedRegretMs[index] = regretMs === 0 && before < 1e-4 ? 0 : keep * before + (1 - keep) * regretMs
    const rtt = rttMs[index]!
    const rttBefore = smoothedRttMs[index]!
    if (!Number.isNaN(rtt)) smoothedRttMs[index] = Number.isNaN(rttBefore) ? rtt : keep * rttBefore + (1 - keep) * rtt
    if (movingTo[index]! >= 0) continue
    const kind = policy[index]
    const isReady = !Number.isNaN(readySinceMs[index]!)
    let wants = false
    if (kind === REGRET) wants = account(tables, index, { nowMs, elapsed, regretMs, best })
    else if (kind === LATENCY) wants = isSlow(tables, index, nowMs)
    else if (kind === FOLLOW) wants = best !== from
    if (wants) {
      const held = reportStays || isReady ? -1 : surelyHeld(tables, index, { nowMs, regretMs, best })
      if (held < 0) active.push(index)
      else gate[index] = held
      continue
    }
    const quiet = regretMs === 0 ? BEST : HYSTERESIS
    if (isReady || (reportStays && gate[index] !== quiet)) active.push(index)
    else gate[index] = quiet
  }
  return active
}

type Now = { nowMs: number; regretMs: number; best: number }

/** G, and whether D' is above H. */
function account(tables: Tables, index: number, { nowMs, elapsed, regretMs, best }: Now & { elapsed: number }): boolean {
  const c = tables.vms.columns
  if (regretMs > 0) c.candidate[index] = best
  const before = c.accountMsSeconds[index]!
  if (regretMs > 0 || before > 0) {
    const gainMs = regretMs > 0 ? regretMs : savedMs(tables, index)
    c.accountMsSeconds[index] = Math.max(0, before + (gainMs - tables.settings.regret.freeMs) * elapsed)
  }
  if (!(c.smoothedRegretMs[index]! > c.hysteresisMs[index]!)) {
    c.aboveSinceMs[index] = Number.NaN
    return false
  }
  if (Number.isNaN(c.aboveSinceMs[index]!)) c.aboveSinceMs[index] = nowMs
  return true
}

/**
 * The user is back where the VM is best: what it would now lose (negative) had the VM been moved to where the regret
 * pointed. Without this, a user who flits over a border would pay for a move with regret that no place could have
 * saved.
 */
function savedMs({ sites, vms }: Tables, index: number): number {
  const c = vms.columns
  const [user, from, candidate] = [c.userSite[index]!, c.site[index]!, c.candidate[index]!]
  if (candidate < 0) return 0
  const saved = sites.rtt(user, from) - sites.rtt(user, candidate)
  return Number.isFinite(saved) ? Math.min(0, saved) : 0
}

/** Latency policy: whether the RTT is above its threshold, with the hysteresis on the way down. */
function isSlow(tables: Tables, index: number, nowMs: number): boolean {
  const c = tables.vms.columns
  const thresholdMs = thresholdOf(tables, index)
  const rttMs = c.smoothedRttMs[index]!
  if (rttMs > thresholdMs && Number.isNaN(c.aboveSinceMs[index]!)) c.aboveSinceMs[index] = nowMs
  else if (!(rttMs >= thresholdMs - tables.settings.latency.hysteresisMs)) c.aboveSinceMs[index] = Number.NaN
  return !Number.isNaN(c.aboveSinceMs[index]!)
}

/**
 * A gate that is surely closed, or -1: then all must be asked. A copy that is staged makes a move cheaper: not judged
 * here.
 */
function surelyHeld(tables: Tables, index: number, { nowMs, regretMs, best }: Now): number {
  const { settings, vms } = tables
  const c = vms.columns
  if (regretMs === 0) return BEST
  const isHard = c.smoothedRttMs[index]! > c.hardLimitMs[index]!
  const aboveMs = nowMs - c.aboveSinceMs[index]!
  if (c.policy[index] === LATENCY) {
    if (!(regretMs > settings.latency.hysteresisMs)) return HYSTERESIS
    return isHard || aboveMs >= settings.latency.triggerMs ? -1 : TRIGGER
  }
  if (c.policy[index] !== REGRET) return -1
  if (aboveMs < settings.regret.triggerMs && !isHard) return TRIGGER
  return c.stagedSite[index] !== best && c.accountMsSeconds[index]! < barePrice(tables, index, best) ? COST : -1
}

/**
 * C_mig without anything staged, and not on the way back: at least so much. Worked out once for a way that does not
 * change.
 */
function barePrice({ settings, sites, vms }: Tables, index: number, target: number): number {
  const c = vms.columns
  const bandwidthBytesPerSecond = sites.bandwidth(c.site[index]!, target)
  if (c.pricedAtBytesPerSecond[index] === bandwidthBytesPerSecond) return c.priceMsSeconds[index]!
  const [memoryBytes, dirtyBytesPerSecond] = [c.memoryBytes[index]!, c.dirtyBytesPerSecond[index]!]
  const cost = migrationCost({ memoryBytes, dirtyBytesPerSecond, bandwidthBytesPerSecond, stagedBytes: 0 }, settings.cost)
  const price = settings.regret.costPerDowntimeMs * cost.downtimeMs + settings.regret.costPerGigabyte * (cost.bytes / 1e9)
  c.pricedAtBytesPerSecond[index] = bandwidthBytesPerSecond
  c.priceMsSeconds[index] = price
  return price
}
