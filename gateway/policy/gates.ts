// The gates a VM must pass before it moves, each a comparison of two numbers. Enters: a view of one VM at one moment.
// Leaves: the first gate that said no, or 'none'; with `lines`, every gate's finding as well (explanations ask the same
// code that decides). Pure.
import type { PolicySettings } from './settings.ts'
import type { GateLine, GateName } from './types.ts'

/** Everything the gates look at; sites are indexes, -1 for none. NaN: not known. */
export type GateInputs = {
  isPinned: boolean
  from: number
  userSite: number
  target: number
  /** Of the last word of the user. */
  ageMs: number
  isMoving: boolean
  backoffLeftMs: number
  /** d: RTT that the user would save at the target. NaN where the RTT between sites is not known. */
  regretMs: number
  smoothedRegretMs: number
  accountMsSeconds: number
  hysteresisMs: number
  /** How long D' has been above H (latency: the RTT above its threshold); NaN when it is not. */
  aboveMs: number
  rttMs: number
  thresholdMs: number
  hardLimitMs: number
  ratio: number
  sinceArrivalMs: number
  residenceMs: number
  priceMsSeconds: number
}

type Ask = (gate: GateName, isOpen: boolean, rule: string, value?: number, limit?: number, unit?: string) => boolean

export function regretGates(view: GateInputs, settings: PolicySettings, lines?: GateLine[]): GateName {
  const { ask, first } = questions(lines)
  const isHard = view.rttMs > view.hardLimitMs
  const { triggerMs } = settings.regret
  const isOn = commonGates(view, settings, ask)
  if (!isOn) return first()
  const { smoothedRegretMs, hysteresisMs } = view
  const above = Number.isNaN(view.aboveMs) ? 0 : view.aboveMs
  void (
    ask('hysteresis', smoothedRegretMs > hysteresisMs, "smoothed regret D' above the hysteresis H", smoothedRegretMs, hysteresisMs, 'ms') &&
    ask(
      'trigger',
      above >= triggerMs || isHard,
      isHard ? 'RTT above the hard limit: no wait for the time to trigger' : "D' above H for the time to trigger",
      above,
      triggerMs,
      'ms',
    ) &&
    effortGates(view, settings, ask) &&
    ask(
      'cost',
      view.accountMsSeconds >= view.priceMsSeconds,
      'regret account G covers the cost of the migration C_mig',
      view.accountMsSeconds,
      view.priceMsSeconds,
      'ms s',
    )
  )
  return first()
}

export function latencyGates(view: GateInputs, settings: PolicySettings, lines?: GateLine[]): GateName {
  const { ask, first } = questions(lines)
  const { hysteresisMs, triggerMs } = settings.latency
  const isHard = view.rttMs > view.hardLimitMs
  const above = Number.isNaN(view.aboveMs) ? 0 : view.aboveMs
  void (
    commonGates(view, settings, ask) &&
    ask('hysteresis', view.regretMs > hysteresisMs, 'gain above the hysteresis', view.regretMs, hysteresisMs, 'ms') &&
    ask(
      'trigger',
      isHard || (above >= triggerMs && !Number.isNaN(view.aboveMs)),
      'RTT above the threshold for the time to trigger',
      above,
      triggerMs,
      'ms',
    ) &&
    effortGates(view, settings, ask)
  )
  return first()
}

/** Wherever the user's site goes: nothing is weighed. */
export function followGates(view: GateInputs, settings: PolicySettings, lines?: GateLine[]): GateName {
  const { ask, first } = questions(lines)
  void commonGates(view, settings, ask)
  return first()
}

/** `manual` and `never`: only commands move the VM. */
export function noGates(lines?: GateLine[]): GateName {
  const { ask, first } = questions(lines)
  ask('policy', false, 'the policy moves VMs by itself')
  return first()
}

function commonGates(view: GateInputs, settings: PolicySettings, ask: Ask): boolean {
  const isKnown = view.from >= 0 && view.userSite >= 0 && !Number.isNaN(view.regretMs)
  return (
    ask('pinned', !view.isPinned, 'the VM is not pinned') &&
    ask('unknown', isKnown, "the VM's site, its user's site and the RTT between them are known") &&
    ask('stale', view.ageMs <= settings.staleMs, 'last measurement of the user is recent', view.ageMs, settings.staleMs, 'ms') &&
    ask('moving', !view.isMoving, 'the VM is not moving') &&
    ask('backoff', view.backoffLeftMs <= 0, 'no wait after a failed migration', Math.max(0, view.backoffLeftMs), 0, 'ms') &&
    ask('best', view.target >= 0 && view.target !== view.from && view.regretMs > 0, 'another site is better', view.regretMs, 0, 'ms')
  )
}

function effortGates(view: GateInputs, settings: PolicySettings, ask: Ask): boolean {
  const { feasibleRatio } = settings.cost
  return (
    ask('feasible', view.ratio < feasibleRatio, 'dirty rate below this share of the bandwidth', view.ratio, feasibleRatio, '') &&
    ask(
      'residence',
      view.sinceArrivalMs >= view.residenceMs,
      'VM has been at this site long enough',
      view.sinceArrivalMs,
      view.residenceMs,
      'ms',
    )
  )
}

/**
 * `ask` says whether to go on: until the first closed gate when only deciding, to the end when every finding is wanted.
 */
function questions(lines?: GateLine[]): { ask: Ask; first: () => GateName } {
  let no: GateName = 'none'
  const ask: Ask = (gate, isOpen, rule, value, limit, unit = '') => {
    if (!isOpen && no === 'none') no = gate
    lines?.push({ gate, isOpen, rule, value: finite(value), limit: finite(limit), unit })
    return isOpen || lines !== undefined
  }
  return { ask, first: () => no }
}

const finite = (value: number | undefined): number | null => (value !== undefined && Number.isFinite(value) ? value : null)
