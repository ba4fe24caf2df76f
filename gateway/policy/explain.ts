// A decision put into words and numbers, for the log and for `godwit explain`. Enters: the engine's tables and a VM.
// Leaves: an Explanation. Pure.

import type { Explanation, GateLine, GateName, PredictionFacts } from './types.ts'
import type { FullView, Tables } from './view.ts'
import { gateOf, policyAt, thresholdOf, viewOf } from './view.ts'

export type ExplainOptions = {
  action?: Explanation['action']
  /** For gates that are not asked of one VM alone (tokens, jitter). */
  gate?: GateName
  prediction?: PredictionFacts | null
}

export function explainVm(tables: Tables, index: number, nowMs: number, options: ExplainOptions = {}): Explanation {
  const { sites, vms, settings } = tables
  const c = vms.columns
  const view = viewOf(tables, index, nowMs)
  const gates: GateLine[] = []
  const asked = gateOf(tables, index, view, gates)
  const gate = asked === 'none' ? (options.gate ?? 'none') : asked
  const policy = policyAt(tables, index)
  const action = options.action ?? 'stay'
  const name = (site: number) => sites.nameOf(site) ?? null
  const number = (value: number) => (Number.isFinite(value) ? value : null)
  const { prediction = null } = options
  return {
    vm: vms.names[index] ?? '',
    atMs: nowMs,
    policy,
    action,
    from: name(view.from),
    userSite: name(view.userSite),
    target: name(view.target),
    gate: action === 'prepare' ? 'none' : gate,
    because: sentence({ action, gate, view, prediction, target: name(view.target) ?? 'nowhere', gates }),
    inputs: {
      rttMs: number(view.rttMs),
      regretMs: number(view.regretMs) ?? 0,
      smoothedRegretMs: view.smoothedRegretMs,
      accountMsSeconds: view.accountMsSeconds,
      sinceArrivalMs: number(view.sinceArrivalMs),
      memoryBytes: c.memoryBytes[index]!,
      dirtyBytesPerSecond: c.dirtyBytesPerSecond[index]!,
      bandwidthBytesPerSecond: number(view.bandwidthBytesPerSecond),
      stagedBytes: view.stagedBytes,
      cost: view.cost ?? null,
      previousSite: name(c.previousSite[index]!),
      unfitSites: tables.unfit.of(index, nowMs).flatMap(site => name(site) ?? []),
      prediction,
    },
    thresholds: {
      sloMs: number(thresholdOf(tables, index)),
      hardLimitMs: number(view.hardLimitMs),
      hysteresisMs: policy === 'latency' ? settings.latency.hysteresisMs : view.hysteresisMs,
      triggerMs: policy === 'latency' ? settings.latency.triggerMs : settings.regret.triggerMs,
      priceMsSeconds: view.cost ? view.priceMsSeconds : null,
    },
    gates,
  }
}

type Said = {
  action: Explanation['action']
  gate: GateName
  view: FullView
  prediction: PredictionFacts | null
  target: string
  gates: GateLine[]
}

function sentence({ action, gate, view, prediction, target, gates }: Said): string {
  const ms = (value: number) => `${value.toFixed(1)} ms`
  if (action === 'prepare' && prediction) {
    return `the user is expected at ${prediction.site} in ${(prediction.tauMs / 1000).toFixed(0)} s with probability ${prediction.probability.toFixed(2)}`
  }
  if (action === 'move') {
    const costs = view.cost
      ? `; predicted duration ${(view.cost.totalMs / 1000).toFixed(1)} s, downtime ${Math.round(view.cost.downtimeMs)} ms`
      : ''
    return `${target} reduces the RTT of the user by ${ms(view.regretMs)}${costs}`
  }
  if (gate === 'tokens') return `waits: ${target} is better, but the source or the target has reached its limit of migrations`
  if (gate === 'jitter') return `waits: ${target} is better, and the start is delayed at random because many VMs move`
  if (gate === 'backoff') return `stays: waits ${Math.ceil(view.backoffLeftMs / 1000)} s after a failed migration`
  if (gate === 'best') return bestSentence(view, target)
  const line = gates.find(entry => entry.gate === gate)
  if (!line) return 'nothing to decide'
  if (line.value === null || line.limit === null) return `stays: ${CLOSED[gate] ?? `condition not met: ${line.rule}`}`
  const unit = line.unit ? ` ${line.unit}` : ''
  return `stays: condition not met: ${line.rule} (${round(line.value)}${unit}, limit ${round(line.limit)}${unit})`
}

function bestSentence({ target: site, from }: FullView, target: string): string {
  if (site < 0) return 'stays: no suitable site near its user is known'
  return site === from ? 'stays: no other site is better for its user' : `stays: ${target} is not better for its user`
}

/** Gates that are no figures, when they are closed. */
const CLOSED: Partial<Record<GateName, string>> = {
  policy: 'its policy moves it only by command',
  pinned: 'the VM is pinned',
  unknown: "its site, its user's site, or the RTT between them is not known",
  stale: 'no recent measurement of its user',
  moving: 'the VM is already moving',
}

const round = (value: number): string => (Math.abs(value) >= 100 ? String(Math.round(value)) : value.toFixed(2))
