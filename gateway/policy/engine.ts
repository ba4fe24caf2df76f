// The handoff policy as one object: observations in, decisions out, once a second. It keeps what it needs of each VM,
// has no clock, no timer and no IO, and gives equal decisions for equal observations. The caller carries decisions out
// and says how they ended.
//
//   const engine = new HandoffEngine({ settings: { policy: 'regret' } })
//   every second: for (const decision of engine.step(nowMs, observations)) carry it out
//   when asked:   engine.explain('vm', nowMs)
//
// Always holds: a VM has at most one move under way, and its `sequence` counts them; tokens are taken with the decision
// and given back with 'ended', whatever the outcome; a VM whose user is silent or whose site is unknown is never moved.
import { createProjection, type Projection } from '../../planning/geo.ts'
import { admit, type StartVerdict, type Wish } from './admission.ts'
import { advance } from './advance.ts'
import { type ExplainOptions, explainVm } from './explain.ts'
import { NextSitePredictor } from './next-site.ts'
import { type PrepareWish, settle, spend, wantsPrepare } from './prepare.ts'
import { POLICY_NAMES, type PolicyName, type PolicySettings, type PolicySettingsInput, policySettings, type VmPolicy } from './settings.ts'
import { SiteTable } from './sites.ts'
import { type Explanation, GATES, type GateName, type Observation, type PredictionFacts, type VmDecision } from './types.ts'
import { Unfit } from './unfit.ts'
import { gateOf, policyAt, viewOf } from './view.ts'
import { VmTable } from './vm-table.ts'

type EngineOptions = {
  settings?: PolicySettingsInput
  /** Also report a 'stay' whenever the gate that holds a VM back has changed. */
  reportStays?: boolean
  /**
   * One observation or one VM could not be handled: it is left out of this step, and all others go on. Without it, what
   * is thrown ends the step.
   */
  onFault?: ((fault: Fault) => void) | undefined
}

export type Fault = { at: 'observation' | 'vm' /** Of the observation, or the VM. */; name: string; error: unknown }

const REGRET = POLICY_NAMES.indexOf('regret')
/** A step that comes late is not taken for a long time of regret. */
const STEP_MAX_MS = 5000

export class HandoffEngine {
  readonly settings: PolicySettings
  readonly sites: SiteTable
  readonly vms = new VmTable()
  readonly predictor = new NextSitePredictor()
  readonly unfit = new Unfit()
  readonly counters = { moves: 0, prepares: 0, withdrawn: 0, heldByTokens: 0, heldByJitter: 0 }
  readonly #reportStays: boolean
  readonly #onFault: EngineOptions['onFault']
  readonly #predictions = new Map<number, PredictionFacts>()
  #projection: Projection | undefined
  #lastMs = Number.NaN

  constructor({ settings, reportStays = false, onFault }: EngineOptions = {}) {
    this.settings = policySettings(settings)
    const { cost, storm, prestage } = this.settings
    this.sites = new SiteTable({
      bandwidthBytesPerSecond: cost.bandwidthBytesPerSecond,
      tokens: storm.tokensPerSite,
      stagingTokens: prestage.tokensPerSite,
    })
    this.#reportStays = reportStays
    this.#onFault = onFault
  }

  /** Observations count before the step. `nowMs` never goes back (TypeError). */
  step(nowMs: number, observations: Iterable<Observation> = []): VmDecision[] {
    if (nowMs < this.#lastMs) throw new TypeError(`time of the policy went back from ${this.#lastMs} ms to ${nowMs} ms`)
    for (const observation of observations)
      this.#attempt('observation', observationName(observation), () => this.observe(nowMs, observation))
    const elapsedMs = Number.isNaN(this.#lastMs) ? 1000 : Math.min(STEP_MAX_MS, nowMs - this.#lastMs)
    this.#lastMs = nowMs
    const decisions: VmDecision[] = []
    const wishes = this.#judge(advance(this, nowMs, elapsedMs / 1000, this.#reportStays), nowMs, decisions)
    if (wishes.length > 0) admit(this, wishes, nowMs, (wish, verdict) => this.#tryToDecide(wish, verdict, nowMs, decisions))
    if (this.settings.prestage.isEnabled) this.#prepare(nowMs, decisions)
    return decisions
  }

  #attempt(at: Fault['at'], name: string, work: () => void): void {
    try {
      work()
    } catch (error) {
      this.#fault(at, name, error)
    }
  }

  #fault(at: Fault['at'], name: string, error: unknown): void {
    if (!this.#onFault) throw error
    this.#onFault({ at, name, error })
  }

  observe(nowMs: number, observation: Observation): void {
    switch (observation.kind) {
      case 'vm':
        this.#observeVm(nowMs, observation)
        break
      case 'vm-gone':
        this.#removeVm(observation.vm)
        break
      case 'user':
        this.#observeUser(nowMs, observation)
        break
      case 'site':
        this.#observeSite(observation)
        break
      case 'link':
        this.#observeLink(observation)
        break
      case 'started':
        this.#observeStarted(observation)
        break
      case 'ended':
        this.#end(nowMs, observation)
        break
      case 'staged':
        this.#observeStaged(nowMs, observation)
        break
      case 'prepared':
        this.#withVm(observation.vm, index => settle(this, index, observation.sentBytes, nowMs))
        break
      case 'unfit':
        this.#withVm(observation.vm, index => this.#observeUnfit(index, observation, nowMs))
        break
    }
  }

  /**
   * By index (vms.find, sites.indexOf), for callers with thousands of users: of each VM `indexes[at]` its user's site,
   * RTT, and place in metres of any flat map.
   */
  observeUsersAt(nowMs: number, indexes: Int32Array, userSites: Int32Array, rtts: Float64Array, xs: Float64Array, ys: Float64Array): void {
    const c = this.vms.columns
    for (let at = 0; at < indexes.length; at++) {
      const index = indexes[at]!
      c.userSite[index] = userSites[at]!
      c.rttMs[index] = rtts[at]!
      c.seenMs[index] = nowMs
    }
    this.#observePlaces(nowMs, indexes, userSites, xs, ys)
  }

  #observePlaces(nowMs: number, indexes: Int32Array, userSites: Int32Array, xs: Float64Array, ys: Float64Array): void {
    const { policy } = this.vms.columns
    let predictable = 0
    for (const index of indexes) if (policy[index] === REGRET) predictable++
    if (predictable === 0) return
    const predicted = predictable === indexes.length ? indexes : indexes.map(index => (policy[index] === REGRET ? index : -1))
    this.predictor.observeAll(predicted, nowMs, xs, ys, userSites)
  }

  /** Why this VM is where it is; undefined for one that is not known. */
  explain(vm: string, nowMs: number): Explanation | undefined {
    const index = this.vms.find(vm)
    if (index === undefined) return undefined
    const gate = GATES[this.vms.columns.gate[index]!] ?? 'none'
    return explainVm(this, index, nowMs, { gate, prediction: this.#predictions.get(index) ?? null })
  }

  /** Asks the gates of those that might move; gives those for whom all are open. */
  #judge(active: readonly number[], nowMs: number, decisions: VmDecision[]): Wish[] {
    const wishes: Wish[] = []
    for (const index of active) {
      this.#attempt('vm', this.vms.names[index] ?? '', () => {
        const wish = this.#judgeOne(index, nowMs, decisions)
        if (wish) wishes.push(wish)
      })
    }
    return wishes
  }

  #judgeOne(index: number, nowMs: number, decisions: VmDecision[]): Wish | undefined {
    const c = this.vms.columns
    const view = viewOf(this, index, nowMs)
    const gate = gateOf(this, index, view)
    if (gate === 'none') return { index, from: view.from, to: view.target, isHard: view.rttMs > view.hardLimitMs }
    if (!Number.isNaN(c.readySinceMs[index]!)) {
      c.readySinceMs[index] = Number.NaN
      this.counters.withdrawn++
    }
    this.#hold(index, gate, nowMs, decisions)
    return undefined
  }

  /** Tokens of a move that cannot be decided are given back. */
  #tryToDecide(wish: Wish, verdict: StartVerdict, nowMs: number, decisions: VmDecision[]): void {
    try {
      this.#decide(wish, verdict, nowMs, decisions)
    } catch (error) {
      if (verdict === 'go' && this.vms.columns.movingTo[wish.index]! < 0) this.sites.giveBack(wish.from, wish.to)
      this.#fault('vm', this.vms.names[wish.index] ?? '', error)
    }
  }

  #hold(index: number, gate: GateName, nowMs: number, decisions: VmDecision[]): void {
    const c = this.vms.columns
    const code = GATES.indexOf(gate)
    if (c.gate[index] === code) return
    c.gate[index] = code
    if (!this.#reportStays) return
    const explanation = this.#explain(index, nowMs, { gate })
    const from = explanation.from ?? ''
    decisions.push({ action: 'stay', vm: explanation.vm, atMs: nowMs, from, to: explanation.target ?? from, gate, explanation })
  }

  #decide({ index, from, to }: Wish, verdict: StartVerdict, nowMs: number, decisions: VmDecision[]): void {
    if (verdict !== 'go') {
      if (verdict === 'tokens') this.counters.heldByTokens++
      else this.counters.heldByJitter++
      this.#hold(index, verdict, nowMs, decisions)
      return
    }
    const c = this.vms.columns
    const explanation = this.#explain(index, nowMs, { action: 'move' })
    this.#begin(index, to)
    this.counters.moves++
    const names = { vm: this.vms.names[index]!, from: this.sites.names[from]!, to: this.sites.names[to]! }
    decisions.push({ action: 'move', ...names, atMs: nowMs, sequence: c.sequence[index]!, explanation })
  }

  #prepare(nowMs: number, decisions: VmDecision[]): void {
    const turns = Math.max(1, Math.round(this.settings.prestage.everyMs / 1000))
    const turn = Math.floor(nowMs / 1000) % turns
    for (let index = turn; index < this.vms.end; index += turns) {
      if (!this.predictor.isMoving(index, nowMs)) continue
      this.#attempt('vm', this.vms.names[index] ?? '', () => {
        const wish = wantsPrepare(this, this.predictor, index, nowMs)
        if (wish) decisions.push(this.#stage(wish, nowMs))
      })
    }
  }

  #stage({ index, from, to, bytes, probability, tauMs, userSite }: PrepareWish, nowMs: number): VmDecision {
    const c = this.vms.columns
    spend(this, index, bytes, nowMs)
    this.sites.countStaging(from, to, 1)
    c.stagingTo[index] = to
    this.counters.prepares++
    const prediction = { site: this.sites.names[userSite]!, probability, tauMs }
    this.#predictions.set(index, prediction)
    const explanation = this.#explain(index, nowMs, { action: 'prepare', prediction })
    const names = { vm: this.vms.names[index]!, from: this.sites.names[from]!, to: this.sites.names[to]! }
    const { keepMs } = this.settings.prestage
    return { action: 'prepare', ...names, atMs: nowMs, bytes, probability, tauMs, keepMs, explanation }
  }

  #explain(index: number, nowMs: number, options: ExplainOptions): Explanation {
    return explainVm(this, index, nowMs, { prediction: this.#predictions.get(index) ?? null, ...options })
  }

  #begin(index: number, to: number): void {
    const c = this.vms.columns
    this.#endStaging(index)
    c.movingTo[index] = to
    c.sequence[index]!++
    c.readySinceMs[index] = Number.NaN
    c.gate[index] = GATES.indexOf('moving')
  }

  #end(nowMs: number, { vm, outcome }: { vm: string; outcome: 'completed' | 'failed' | 'refused' | 'cancelled' }): void {
    const index = this.vms.find(vm)
    if (index === undefined || this.vms.columns.movingTo[index]! < 0) return
    const c = this.vms.columns
    const [from, to] = [c.site[index]!, c.movingTo[index]!]
    this.sites.giveBack(from, to)
    c.movingTo[index] = -1
    if (outcome === 'completed') {
      this.#arrive(index, to, nowMs)
      c.failures[index] = 0
      return
    }
    const { backoffMs, backoffMaxMs } = this.settings.storm
    c.failures[index]!++
    c.backoffUntilMs[index] = nowMs + Math.min(backoffMaxMs, backoffMs * 2 ** (c.failures[index]! - 1))
    c.aboveSinceMs[index] = Number.NaN
  }

  /** The VM is at another site than before: regret begins anew. */
  #arrive(index: number, site: number, nowMs: number): void {
    const c = this.vms.columns
    c.previousSite[index] = c.site[index]!
    c.previousLeftMs[index] = nowMs
    c.site[index] = site
    this.unfit.forget(index, site)
    c.arrivedMs[index] = nowMs
    c.smoothedRegretMs[index] = 0
    c.accountMsSeconds[index] = 0
    c.candidate[index] = -1
    c.aboveSinceMs[index] = Number.NaN
    c.smoothedRttMs[index] = Number.NaN
    c.stagedSite[index] = -1
    c.stagedBytes[index] = 0
    this.#predictions.delete(index)
  }

  #endStaging(index: number): void {
    const c = this.vms.columns
    if (c.stagingTo[index]! < 0) return
    this.sites.countStaging(c.site[index]!, c.stagingTo[index]!, -1)
    c.stagingTo[index] = -1
  }

  #observeVm(nowMs: number, { vm, site: name, memoryBytes, dirtyBytesPerSecond, policy }: Observation & { kind: 'vm' }): void {
    const site = this.sites.indexOf(name)
    const index = this.vms.find(vm) ?? this.vms.add(vm)
    const c = this.vms.columns
    if (c.site[index]! < 0) {
      c.site[index] = site
      c.arrivedMs[index] = nowMs
      c.allowanceBytes[index] = this.settings.prestage.budgetBytesPerHour
      c.allowanceMs[index] = nowMs
      this.#setPolicy(index, policy ?? {})
    } else if (policy) this.#setPolicy(index, policy)
    c.memoryBytes[index] = memoryBytes
    c.pricedAtBytesPerSecond[index] = 0
    if (dirtyBytesPerSecond !== undefined) c.dirtyBytesPerSecond[index] = dirtyBytesPerSecond
    if (c.site[index] === site || c.movingTo[index]! >= 0) return
    this.#endStaging(index)
    this.#arrive(index, site, nowMs)
  }

  #setPolicy(index: number, { policy, sloMs, hardLimitMs, isPinned }: VmPolicy): void {
    const c = this.vms.columns
    const { regret } = this.settings
    const kind = POLICY_NAMES.indexOf(policy ?? this.settings.policy)
    // The same words said again do not make TTT begin anew.
    if (kind !== c.policy[index] || !Object.is(sloMs ?? Number.NaN, c.sloMs[index])) c.aboveSinceMs[index] = Number.NaN
    c.policy[index] = kind
    c.sloMs[index] = sloMs ?? Number.NaN
    c.hardLimitMs[index] = hardLimitMs ?? Number.POSITIVE_INFINITY
    c.hysteresisMs[index] = sloMs === undefined ? regret.hysteresisMs : sloMs * regret.hysteresisSloShare
    c.isPinned[index] = isPinned ? 1 : 0
  }

  #removeVm(vm: string): void {
    const index = this.vms.find(vm)
    if (index === undefined) return
    const c = this.vms.columns
    if (c.movingTo[index]! >= 0) this.sites.giveBack(c.site[index]!, c.movingTo[index]!)
    this.#endStaging(index)
    this.#predictions.delete(index)
    this.predictor.forget(index)
    this.unfit.forget(index)
    this.vms.remove(index)
  }

  #observeUser(nowMs: number, { vm, site, rttMs, lat, lon }: Observation & { kind: 'user' }): void {
    const index = this.vms.find(vm)
    if (index === undefined) return
    const place = lat === undefined || lon === undefined ? undefined : this.#toMap(lat, lon)
    const c = this.vms.columns
    c.userSite[index] = this.sites.indexOf(site)
    if (rttMs !== undefined) c.rttMs[index] = rttMs
    c.seenMs[index] = nowMs
    if (place && c.policy[index] === REGRET) this.predictor.observe(index, nowMs, place.x, place.y, c.userSite[index]!)
  }

  #observeSite({ site: name, isEligible, tokens, lat, lon }: Observation & { kind: 'site' }): void {
    const site = this.sites.indexOf(name)
    if (isEligible !== undefined) this.sites.setEligible(site, isEligible)
    if (tokens !== undefined) this.sites.setTokens(site, tokens)
    if (lat === undefined || lon === undefined) return
    const { x, y } = this.#toMap(lat, lon)
    this.predictor.coverage.addSite(site, x, y)
  }

  #observeLink({ from, to, rttMs, bandwidthBytesPerSecond }: Observation & { kind: 'link' }): void {
    const [a, b] = [this.sites.indexOf(from), this.sites.indexOf(to)]
    if (rttMs !== undefined) this.sites.setRtt(a, b, rttMs)
    if (bandwidthBytesPerSecond !== undefined) this.sites.setBandwidth(a, b, bandwidthBytesPerSecond)
  }

  #observeStarted({ vm, to: name }: Observation & { kind: 'started' }): void {
    const index = this.vms.find(vm)
    if (index === undefined || this.vms.columns.site[index]! < 0 || this.vms.columns.movingTo[index]! >= 0) return
    const to = this.sites.indexOf(name)
    this.sites.take(this.vms.columns.site[index]!, to)
    this.#begin(index, to)
  }

  #observeStaged(nowMs: number, { vm, site, bytes, isDone }: Observation & { kind: 'staged' }): void {
    const index = this.vms.find(vm)
    if (index === undefined) return
    const c = this.vms.columns
    const at = this.sites.indexOf(site)
    if (isDone && c.stagingTo[index] === at) this.#endStaging(index)
    if (bytes === 0 && c.stagedSite[index] !== at) return
    c.stagedSite[index] = bytes > 0 ? at : -1
    c.stagedBytes[index] = bytes
    c.stagedMs[index] = nowMs
  }

  /** Another target need not wait for what this one has refused. */
  #observeUnfit(index: number, { site, forMs }: Observation & { kind: 'unfit' }, nowMs: number): void {
    const at = this.sites.indexOf(site)
    if (at === this.vms.columns.site[index]) return
    this.unfit.mark(index, at, nowMs + forMs)
    this.vms.columns.backoffUntilMs[index] = Number.NEGATIVE_INFINITY
  }

  #withVm(vm: string, work: (index: number) => void): void {
    const index = this.vms.find(vm)
    if (index !== undefined) work(index)
  }

  #toMap(lat: number, lon: number) {
    this.#projection ??= createProjection({ lat, lon })
    return this.#projection.toMap({ lat, lon })
  }

  /** The policy that a VM is under. */
  policyOf(vm: string): PolicyName | undefined {
    const index = this.vms.find(vm)
    return index === undefined ? undefined : policyAt(this, index)
  }
}

function observationName(observation: Observation): string {
  if (observation.kind === 'link') return `link ${observation.from} ${observation.to}`
  return observation.kind === 'site' ? `site ${observation.site}` : `${observation.kind} ${observation.vm}`
}
