// The policy at work: what is measured goes into the engine, what it decides becomes migrations. Pure but for its host:
// time is passed in, and a caller (gateway.ts) steps it once a second.
//
//   MQTT latency, location, links ─┐
//   sites and their VMs ───────────┼─▶ engine.step(nowMs) ─▶ start(vm, to) ─▶ 'ended', told to the engine
//   migrations begun and ended ────┘
//
// Where a user is: at the site with the least RTT of those that were measured to lately (radio adds the same to all, so
// it cancels); with only one measured, at the site nearest to the place that the user reported; otherwise unknown, and
// then nothing moves.
// Always holds: every decision is in the log with its reason; a migration that cannot be started counts as refused, and
// waits as the engine says; what is remembered is bounded by the VMs and sites that there are, and nothing is taken of
// others; what one VM, site or measurement breaks is counted, and the step goes on without it.
import { createProjection } from '../../planning/geo.ts'
import type { MigrationRecord, MigrationRequest, PrestageRecord, PrestageRequest, SiteView, VmView } from '../../wire/admin.ts'
import { HOLD_MS_MAX } from '../../wire/control.ts'
import { ERRORS, type ErrorBody, fromBody, type GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { GatewayEvent } from '../handoff/events.ts'
import type { Measurement } from '../handoff/measurements.ts'
import type { SitePath } from '../handoff/paths.ts'
import type { PolicyConfig } from './config.ts'
import { type Fault, HandoffEngine } from './engine.ts'
import { VmPolicy } from './settings.ts'
import type { Explanation, Observation, VmDecision } from './types.ts'

/** How much of an RTT's former value stays at each new measurement: one packet's bad luck is no place. */
const KEEP = 0.6
const USERS_MAX = 100_000
const EVENTS_MAX = 10_000
/** Measured links that wait for the next step; of each pair the newest. */
const LINKS_MAX = 65_536
/** A measured RTT counts for so long against the gateway's own estimate. */
const MEASURED_MS = 60_000
/** What is measured to be slower carries nothing: 8 bit/s. The engine divides by it. */
const BANDWIDTH_MIN = 1
/** More sites in the engine than twice those that there are, and these: it begins anew. */
const GONE_SITES_MAX = 64
/** Refusals of the target itself, and how long they count: what may pass, and what will not without a person. */
const UNFIT = /^(PREFLIGHT_|MIGRATION_DENIED$|RELEASE_DENIED$|COMMAND_REQUIRED$|VM_EXISTS$)/
const UNFIT_MS = 120_000
const UNFIT_LONG_MS = 600_000

export type LiveHost = {
  /** Each VM once, where it lives (homes.ts). */
  vms(): VmView[]
  sites(): SiteView[]
  isPinned(vm: string): boolean
  start(request: MigrationRequest): Promise<string>
  prestage(request: PrestageRequest): Promise<PrestageRecord>
}

export type LiveOptions = {
  config: PolicyConfig
  places?: Record<string, { geo?: { lat: number; lon: number } | undefined }> | undefined
  host: LiveHost
  onDecision?: (decision: VmDecision) => void
  /** What was left out of a step. */
  onFault?: (fault: LiveFault) => void
  log: Log
}

export type LiveFault = { at: Fault['at'] | 'decision'; name: string; error: unknown }

/** A move that the policy has decided. */
type LastMove = { from: string; to: string; because: string }
/** GET /v1/vms/:vm/explain. */
export type LiveExplanation = Explanation & { lastMove: LastMove | null }

type Rtt = { rttMs: number; atMs: number }
/** What was measured of a VM's user. */
type UserFacts = { rtts: Map<string, Rtt>; place: { lat: number; lon: number; atMs: number } | undefined }

export class LivePolicy {
  readonly #options: LiveOptions
  #engine: HandoffEngine
  readonly #users = new Map<string, UserFacts>()
  /** Whose VM a subscriber uses: locations name only the subscriber. */
  readonly #vmOf = new Map<string, string>()
  readonly #wishes = new Map<string, string>()
  readonly #dirty = new Map<string, number>()
  /** Pairs of sites whose RTT somebody has measured or written down, and until when that counts. */
  readonly #links = new Map<string, number>()
  readonly #newLinks = new Map<string, Observation & { kind: 'link' }>()
  /** Sites of the gateway and of its operator: as of the last step. */
  #sitesKnown = new Set<string>()
  /** VMs under way, and where to: an engine that begins anew must know. */
  readonly #moving = new Map<string, string>()
  readonly #lastMoves = new Map<string, LastMove>()
  #events: Observation[] = []
  #steppedMs = Number.NEGATIVE_INFINITY

  constructor(options: LiveOptions) {
    this.#options = options
    this.#engine = this.#begin()
    this.#findSites()
  }

  #begin(): HandoffEngine {
    const { name, vms: _, links, ...settings } = this.#options.config
    const onFault = this.#options.onFault && this.#fault.bind(this)
    const engine = new HandoffEngine({ settings: { ...settings, policy: name }, reportStays: true, onFault })
    for (const { from, to, rttMs, bandwidthBytesPerSecond } of links) {
      if (rttMs !== undefined) this.#links.set(pairOf(from, to), Number.POSITIVE_INFINITY)
      const path = bandwidthBytesPerSecond === undefined ? {} : { bandwidthBytesPerSecond }
      this.#events.push({ kind: 'link', from, to, ...(rttMs === undefined ? {} : { rttMs }), ...path })
    }
    for (const [site, { geo }] of Object.entries(this.#options.places ?? {})) if (geo) this.#events.push({ kind: 'site', site, ...geo })
    return engine
  }

  /** A measurement that has been checked and is newer than those before it. */
  measured(measurement: Measurement, nowMs: number): void {
    if (measurement.kind === 'link') {
      const { site: from, peer: to, value } = measurement
      if (from === to || !this.#isSite(from) || !this.#isSite(to)) return
      if (value.rttMs !== null) this.#linkMeasured(pairOf(from, to), nowMs)
      this.#linkChanged(from, to, value)
    } else if (measurement.kind === 'latency') {
      const { vmId, targetSite, rttMs } = measurement.value
      const user = this.#users.get(vmId)
      if (!user || !this.#isSite(targetSite)) return
      const before = user.rtts.get(targetSite)
      const isFresh = before && nowMs - before.atMs <= this.#engine.settings.staleMs
      user.rtts.set(targetSite, { rttMs: isFresh ? KEEP * before.rttMs + (1 - KEEP) * rttMs : rttMs, atMs: nowMs })
      this.#vmOf.delete(measurement.ueKey)
      this.#vmOf.set(measurement.ueKey, vmId)
      if (this.#vmOf.size > USERS_MAX) this.#vmOf.delete(this.#vmOf.keys().next().value!)
    } else if (measurement.kind === 'location') {
      const user = this.#users.get(this.#vmOf.get(measurement.ueKey) ?? '')
      const { lat, lon } = measurement.value
      if (user) user.place = { lat, lon, atMs: nowMs }
    }
  }

  /**
   * What the gateway knows of the ways by itself. Bandwidth counts at once; an RTT only where nobody has measured one
   * lately or written one down.
   */
  paths(estimates: readonly SitePath[], nowMs: number): void {
    for (const [pair, untilMs] of this.#links) if (untilMs <= nowMs) this.#links.delete(pair)
    for (const { from, to, rttMs, availableBps } of estimates) {
      const isOurs = !this.#links.has(pairOf(from, to))
      if (isOurs || availableBps) this.#linkChanged(from, to, { rttMs: isOurs ? rttMs : null, availableBps })
    }
  }

  /** What an operator has written down stands until it is measured, and then no longer. */
  #linkMeasured(pair: string, nowMs: number): void {
    if (this.#links.get(pair) !== Number.POSITIVE_INFINITY) this.#links.set(pair, nowMs + MEASURED_MS)
  }

  /** For the next step: of each way the newest figures. */
  #linkChanged(
    from: string,
    to: string,
    { rttMs, availableBps }: { rttMs: number | null; availableBps?: number | null | undefined },
  ): void {
    const way = `${from} ${to}`
    const before = this.#newLinks.get(way)
    if (!before && this.#newLinks.size >= LINKS_MAX) return
    const path = availableBps ? { bandwidthBytesPerSecond: Math.max(BANDWIDTH_MIN, availableBps / 8) } : {}
    this.#newLinks.set(way, { ...before, kind: 'link', from, to, ...(rttMs === null ? {} : { rttMs }), ...path })
  }

  event(event: GatewayEvent): void {
    if (event.event === 'progress') {
      const { dirtyBytesPerSecond, wireBytes, bytesSent } = event.progress
      // What a rewritten byte costs on the wire is what the policy weighs; 0 means that QEMU has not measured yet.
      const share = wireBytes && bytesSent ? Math.min(1, wireBytes / bytesSent) : 1
      if (dirtyBytesPerSecond && this.#users.has(event.migration.vm)) this.#dirty.set(event.migration.vm, dirtyBytesPerSecond * share)
    }
    if (event.event === 'migration') {
      const { vm, target, error, outcome } = event.migration
      if (outcome === null) this.#moving.set(vm, target)
      else this.#moving.delete(vm)
      this.#push(observationOf(event.migration))
      this.#refused(vm, target, error)
    }
    if (event.event === 'prestage' && event.prestage.outcome !== null) {
      const { vm, target, wireBytes } = event.prestage
      this.#push({ kind: 'prepared', vm, sentBytes: wireBytes })
      this.#push({ kind: 'staged', vm, site: target, bytes: 0, isDone: true })
    }
  }

  /** Once a second. `nowMs` is of a clock that never goes back. */
  step(nowMs: number): void {
    this.#findSites()
    const isAnew = this.#engine.sites.count > 2 * this.#sitesKnown.size + GONE_SITES_MAX
    if (isAnew) this.#beginAnew()
    const underway: Observation[] = isAnew ? [...this.#moving].map(([vm, to]) => ({ kind: 'started', vm, to })) : []
    const links = [...this.#newLinks.values()]
    this.#newLinks.clear()
    const observations = [...this.#events.splice(0), ...links, ...this.#sites(), ...this.#vms(nowMs), ...underway]
    this.#steppedMs = nowMs
    for (const decision of this.#engine.step(nowMs, observations)) {
      try {
        this.#carryOut(decision)
      } catch (error) {
        if (!this.#options.onFault) throw error
        this.#fault({ at: 'decision', name: decision.vm, error })
      }
    }
  }

  #carryOut(decision: VmDecision): void {
    const { log, onDecision } = this.#options
    const { action, vm, from, to, explanation } = decision
    const words = { vm, from, to, because: explanation.because, inputs: explanation.inputs, thresholds: explanation.thresholds }
    if (action === 'stay') log.debug('policy keeps a VM', { ...words, gate: decision.gate })
    else log.info(action === 'move' ? 'policy moves a VM' : 'policy pre-stages a VM', words)
    if (action === 'prepare') this.#prepare(vm, to, decision)
    if (action === 'move') {
      this.#lastMoves.set(vm, { from, to, because: explanation.because })
      this.#moving.set(vm, to)
      this.#start(vm, to)
    }
    onDecision?.(decision)
  }

  #fault(fault: LiveFault): void {
    this.#options.onFault?.(fault)
  }

  /** A site that has come since the last step is found as well. */
  #isSite(name: string): boolean {
    if (!this.#sitesKnown.has(name)) this.#findSites()
    return this.#sitesKnown.has(name)
  }

  #findSites(): void {
    const { host, places = {}, config } = this.#options
    const names = config.links.flatMap(({ from, to }) => [from, to])
    this.#sitesKnown = new Set([...host.sites().map(({ site }) => site), ...Object.keys(places), ...names])
  }

  /** Most of the sites that it knows are gone for good. */
  #beginAnew(): void {
    this.#options.log.info('policy restarted with the current sites', { sites: this.#engine.sites.count, known: this.#sitesKnown.size })
    this.#links.clear()
    this.#wishes.clear()
    this.#engine = this.#begin()
  }

  /** Sites that it weighs now. */
  get sites(): number {
    return this.#engine.sites.count
  }

  /** Why this VM is where it is, and why it last moved; undefined for one that the policy does not know. */
  explain(vm: string, nowMs: number): LiveExplanation | undefined {
    const now = this.#engine.explain(vm, nowMs)
    return now && { ...now, lastMove: this.#lastMoves.get(vm) ?? null }
  }

  #push(observation: Observation | undefined): void {
    if (observation && this.#events.length < EVENTS_MAX) this.#events.push(observation)
  }

  #start(vm: string, to: string): void {
    const { host, log } = this.#options
    host.start({ vm, to }).catch(thrown => {
      log.warn('handoff could not be started', { vm, to, error: toGodwitError(thrown) })
      this.#moving.delete(vm)
      this.#push({ kind: 'ended', vm, outcome: 'refused' })
    })
  }

  /**
   * Nothing of the guest is sent ahead yet: the target is asked, and room is held there. What it sends, and its end,
   * come as an event.
   */
  #prepare(vm: string, to: string, { keepMs, bytes }: VmDecision & { action: 'prepare' }): void {
    const { host, log } = this.#options
    host.prestage({ vm, to, holdMs: Math.min(HOLD_MS_MAX, Math.max(1000, Math.round(keepMs))), maxBytes: bytes }).catch(thrown => {
      const error = toGodwitError(thrown)
      log.warn('pre-staging failed', { vm, to, error })
      this.#push({ kind: 'staged', vm, site: to, bytes: 0, isDone: true })
      this.#refused(vm, to, error)
    })
  }

  /** A target that cannot take this VM is not asked again at once: the policy looks at the next best. */
  #refused(vm: string, site: string, error: GodwitError | ErrorBody | undefined): void {
    if (!error || !UNFIT.test(error.code)) return
    const { retryable } = ERRORS[fromBody(error).code]
    this.#push({ kind: 'unfit', vm, site, forMs: retryable ? UNFIT_MS : UNFIT_LONG_MS })
  }

  #sites(): Observation[] {
    return this.#options.host.sites().map(({ site, online }) => ({ kind: 'site', site, isEligible: online }))
  }

  /** Each VM where it lives, and its user. */
  *#vms(nowMs: number): Iterable<Observation> {
    const vms = new Map(this.#options.host.vms().map(vm => [vm.name, vm]))
    for (const vm of this.#users.keys()) {
      if (vms.has(vm)) continue
      for (const table of [this.#users, this.#wishes, this.#dirty, this.#moving, this.#lastMoves]) table.delete(vm)
      yield { kind: 'vm-gone', vm }
    }
    for (const [vm, { site, memoryBytes, policy }] of vms) {
      const user = this.#users.get(vm) ?? { rtts: new Map(), place: undefined }
      this.#users.set(vm, user)
      const wish = this.#wish(vm, policy)
      const dirty = this.#dirty.get(vm)
      yield { kind: 'vm', vm, site, memoryBytes, ...(dirty === undefined ? {} : { dirtyBytesPerSecond: dirty }), ...wish }
      yield* this.#userAt(vm, user, site, nowMs)
    }
  }

  /**
   * What the VM wants, if it has changed: the engine begins anew with each word of it. The operator's word counts more
   * than the VM's own.
   */
  #wish(vm: string, own: Record<string, unknown> | undefined): { policy: VmPolicy } | undefined {
    const { config, host, log } = this.#options
    const parsed = VmPolicy.safeParse(own ?? {})
    const policy = { ...(parsed.success ? parsed.data : {}), ...config.vms[vm], ...(host.isPinned(vm) ? { isPinned: true } : {}) }
    const text = JSON.stringify([policy, own])
    if (this.#wishes.get(vm) === text) return undefined
    this.#wishes.set(vm, text)
    if (!parsed.success) log.warn('policy of a VM specification is invalid', { vm, issue: parsed.error.issues[0]?.message })
    return { policy }
  }

  *#userAt(vm: string, { rtts, place }: UserFacts, vmSite: string, nowMs: number): Iterable<Observation> {
    const { staleMs } = this.#engine.settings
    let best: string | undefined
    let latestMs = Number.NEGATIVE_INFINITY
    for (const [site, { rttMs, atMs }] of rtts) {
      if (nowMs - atMs > staleMs) rtts.delete(site)
      else {
        latestMs = Math.max(latestMs, atMs)
        if (best === undefined || rttMs < rtts.get(best)!.rttMs) best = site
      }
    }
    const isPlaceFresh = place && nowMs - place.atMs <= staleMs
    const site = rtts.size > 1 ? best : isPlaceFresh ? this.#nearest(place) : undefined
    // Nothing new since the last step says nothing new: the engine sees how old the user's last word is.
    if (site === undefined || Math.max(latestMs, place?.atMs ?? latestMs) <= this.#steppedMs) return
    const rtt = rtts.get(vmSite)
    yield {
      kind: 'user',
      vm,
      site,
      ...(rtt ? { rttMs: rtt.rttMs } : {}),
      ...(isPlaceFresh ? { lat: place.lat, lon: place.lon } : {}),
    }
  }

  #nearest(point: { lat: number; lon: number }): string | undefined {
    const projection = createProjection(point)
    let best: string | undefined
    let bestMeters = Number.POSITIVE_INFINITY
    for (const [site, { geo }] of Object.entries(this.#options.places ?? {})) {
      if (!geo) continue
      const { x, y } = projection.toMap(geo)
      const meters = Math.hypot(x, y)
      if (meters < bestMeters) [best, bestMeters] = [site, meters]
    }
    return best
  }
}

const pairOf = (a: string, b: string): string => (a < b ? `${a} ${b}` : `${b} ${a}`)

function observationOf({ vm, target, outcome }: MigrationRecord): Observation {
  return outcome === null ? { kind: 'started', vm, to: target } : { kind: 'ended', vm, outcome }
}
