// Simulates a scenario under one policy in virtual time. Enters: a world and the settings of the policy. Leaves: a
// report. Pure; the same seed gives the same report.

import { HandoffEngine } from '../../gateway/policy/engine.ts'
import { PolicySettings, type PolicySettingsInput } from '../../gateway/policy/settings.ts'
import type { VmDecision } from '../../gateway/policy/types.ts'
import { migrationCost } from '../../planning/cost.ts'
import type { Scenario } from '../../sim-network/mobility/scenario.ts'
import type { DriveTrace } from '../../sim-network/mobility/trace.ts'
import { World } from '../../sim-network/mobility/world.ts'
import { createRandom, type Random } from '../../sim-network/random.ts'
import { check } from '../../wire/schema.ts'
import { MIB } from '../../wire/units.ts'
import { Executor, type SimVm } from './executor.ts'
import { SimulationMetrics, type SimulationReport } from './metrics.ts'
import { Optimum } from './optimum.ts'

/** The SLO in the report for users without an SLO. */
const SLO_MS = 20

export type SimulationOptions = {
  scenario: Scenario
  hours: number
  /** Override the scenario's policy settings. */
  settings?: PolicySettingsInput
  /** Shown in the report instead of the policy's name. */
  label?: string
  /** All traces; `played` are those that users replay (default: all). */
  traces?: readonly DriveTrace[]
  played?: readonly DriveTrace[]
  /** Called with every decision. */
  onDecision?: (decision: VmDecision) => void
  /** After each hour of the world. */
  onHour?: (hour: number) => void
  /** After each step. */
  onStep?: (simulation: Simulation) => void
}

/** Runs a scenario. CONFIG_INVALID when its policy part is wrong. */
export const simulate = (options: SimulationOptions): SimulationReport => simulateAll([options])[0]!

/** The same scenario under several policies, in one world: policies do not change the world. */
export function simulateAll(all: readonly SimulationOptions[]): SimulationReport[] {
  const { scenario, traces = [], played = traces, hours } = all[0]!
  const world = new World(scenario, traces, played)
  const simulations = all.map(options => new Simulation(options, world))
  const endMs = hours * 3_600_000
  while (world.nowMs < endMs) {
    const changes = world.step()
    for (const simulation of simulations) simulation.step(changes)
    if (world.nowMs % 3_600_000 === 0) all[0]!.onHour?.(world.nowMs / 3_600_000)
  }
  return simulations.map(simulation => simulation.finish())
}

export class Simulation {
  readonly world: World
  readonly engine: HandoffEngine
  readonly vms: (SimVm | undefined)[]
  readonly executor: Executor
  readonly metrics = new SimulationMetrics()
  readonly #options: SimulationOptions
  readonly #optimum: Optimum
  readonly #random: Random
  readonly #byName = new Map<string, SimVm>()
  readonly #indexes: Int32Array
  readonly #sessions: Int32Array
  /** The site of each user's VM, kept separately because it is read every second for every user. */
  readonly #vmSites: Int32Array
  readonly #rtts: Float64Array
  readonly #sloMs: number
  #bestMs: Float64Array
  readonly #fastest: number

  constructor(options: SimulationOptions, world: World) {
    const { scenario } = options
    this.#options = options
    this.world = world
    const given = check(PolicySettings, { ...scenario.policy, ...options.settings }, { what: 'policy', code: 'CONFIG_INVALID' })
    this.engine = new HandoffEngine({ settings: given })
    const { users, map } = this.world
    this.#sloMs = scenario.vm.sloMs ?? SLO_MS
    this.#random = createRandom(scenario.seed).fork('vms')
    this.vms = new Array(users.count)
    this.#indexes = new Int32Array(users.count).fill(-1)
    this.#sessions = new Int32Array(users.count).fill(-1)
    this.#vmSites = new Int32Array(users.count)
    this.#rtts = new Float64Array(users.count)
    this.#bestMs = new Float64Array(map.sites.length)
    this.#fastest = Math.max(...map.sites.map(({ linkBytesPerSecond }) => linkBytesPerSecond))
    this.#tellSites()
    this.executor = new Executor(map, given, createRandom(scenario.seed).fork('links'), {
      moved: move => {
        this.#vmSites[move.vm.user] = move.to
        this.metrics.moved(move, this.#price(move.downtimeMs, move.bytes))
      },
      staged: (_, sentBytes, wastedBytes) => {
        this.metrics.stagedBytes += sentBytes
        this.metrics.wastedBytes += wastedBytes
        this.metrics.priceMsSeconds += this.#price(0, sentBytes)
      },
      tell: observation => this.engine.observe(this.world.nowMs, observation),
    })
    this.#optimum = new Optimum({
      users: users.count,
      sites: map.sites.length,
      regretMs: (userSite, site) => this.world.rttMs[userSite * map.sites.length + site]! - this.#bestMs[userSite]!,
      price: user => this.#soloPrice(user),
    })
    for (let user = 0; user < users.count; user++) this.#begin(user)
  }

  /** Processes one step of the world. */
  step({ sites, isRttChanged }: ReturnType<World['step']>): void {
    const { world, engine } = this
    for (const { site, isEligible } of sites) engine.sites.setEligible(site, isEligible)
    if (isRttChanged) this.#tellRtts()
    this.executor.advance(world.nowMs)
    this.#observeUsers()
    for (const decision of engine.step(world.nowMs)) this.#carryOut(decision)
    this.#options.onStep?.(this)
  }

  finish(): SimulationReport {
    for (const user of this.vms.keys()) this.#end(user)
    const { world, engine } = this
    const label = this.#options.label ?? engine.settings.policy
    const score = engine.predictor.score()
    return this.metrics.report({
      policy: label,
      prediction: score.predictions > 0 ? score : null,
      optimum: this.#optimum.total,
      siteChanges: world.siteChanges,
      cellChanges: world.cellChanges,
      sitesBusyMax: this.executor.busyMax,
    })
  }

  /** One step of every user: passed to the policy and counted. */
  #observeUsers(): void {
    const { world, engine, metrics } = this
    const { users, site, nowMs } = world
    const seconds = world.stepMs / 1000
    for (let user = 0; user < users.count; user++) {
      if (users.session[user] === this.#sessions[user]) continue
      this.#end(user)
      this.#begin(user)
    }
    const { violated, unavoidable, regretMs } = this.#measure()
    this.#optimum.stayAll(site, seconds)
    engine.observeUsersAt(nowMs, this.#indexes, site, this.#rtts, users.x, users.y)
    metrics.seconds += users.count * seconds
    metrics.violatedSeconds += violated * seconds
    metrics.unavoidableSeconds += unavoidable * seconds
    metrics.regretMsSeconds += regretMs * seconds
  }

  /** Counts every user's RTT, SLO violations (also unavoidable ones), and regret. */
  #measure(): { violated: number; unavoidable: number; regretMs: number } {
    const { site, accessMs, rttMs, map } = this.world
    const [vmSites, bestMs, rtts, sloMs, sites] = [this.#vmSites, this.#bestMs, this.#rtts, this.#sloMs, map.sites.length]
    let violated = 0
    let unavoidable = 0
    let regretMs = 0
    for (let user = 0; user < rtts.length; user++) {
      const userSite = site[user]!
      const wayMs = rttMs[userSite * sites + vmSites[user]!]!
      const leastMs = bestMs[userSite]!
      const rtt = accessMs[user]! + wayMs
      rtts[user] = rtt
      if (rtt > sloMs) violated++
      if (accessMs[user]! + leastMs > sloMs) unavoidable++
      regretMs += wayMs - leastMs
    }
    return { violated, unavoidable, regretMs }
  }

  #carryOut(decision: VmDecision): void {
    this.#options.onDecision?.(decision)
    const vm = this.#byName.get(decision.vm)!
    const to = this.engine.sites.indexOf(decision.to)
    if (decision.action === 'move') this.executor.move(decision, vm, to)
    else if (decision.action === 'prepare') this.executor.stage(decision, vm, to)
  }

  #begin(user: number): void {
    const { scenario } = this.#options
    const { memoryMiB, dirtyMiBps, hardLimitMs } = scenario.vm
    const session = this.world.users.session[user]!
    const random = this.#random.fork(`${user}/${session}`)
    const userSite = this.world.site[user]!
    const vm: SimVm = {
      name: `vm-${user}-${session}`,
      user,
      site: Math.max(0, this.engine.sites.best(userSite)),
      memoryBytes: Math.round(random.between(...memoryMiB)) * MIB,
      dirtyBytesPerSecond: random.between(...dirtyMiBps) * MIB,
    }
    this.vms[user] = vm
    this.#vmSites[user] = vm.site
    this.#byName.set(vm.name, vm)
    this.#sessions[user] = session
    const { name, memoryBytes, dirtyBytesPerSecond } = vm
    this.engine.observe(this.world.nowMs, {
      kind: 'vm',
      vm: name,
      site: this.world.map.sites[vm.site]!.name,
      memoryBytes,
      dirtyBytesPerSecond,
      policy: { sloMs: this.#sloMs, ...(hardLimitMs === undefined ? {} : { hardLimitMs }) },
    })
    this.#indexes[user] = this.engine.vms.find(name)!
    this.#optimum.begin(user, vm.site)
  }

  #end(user: number): void {
    const vm = this.vms[user]
    if (!vm) return
    this.executor.remove(vm, this.world.nowMs)
    this.engine.observe(this.world.nowMs, { kind: 'vm-gone', vm: vm.name })
    this.metrics.forget(vm.name)
    this.#byName.delete(vm.name)
    this.vms[user] = undefined
    this.#optimum.end(user)
  }

  #tellSites(): void {
    const { map } = this.world
    for (const { name, tokens, x, y } of map.sites) {
      const index = this.engine.sites.indexOf(name)
      if (tokens !== undefined) this.engine.sites.setTokens(index, tokens)
      this.engine.predictor.coverage.addSite(index, x, y)
    }
    for (const [a, from] of map.sites.entries()) {
      for (const [b, to] of map.sites.entries()) {
        if (a !== b) this.engine.sites.setBandwidth(a, b, Math.min(from.linkBytesPerSecond, to.linkBytesPerSecond))
      }
    }
    this.#tellRtts()
  }

  #tellRtts(): void {
    const sites = this.world.map.sites.length
    const { rttMs } = this.world
    for (let a = 0; a < sites; a++) {
      let bestMs = Number.POSITIVE_INFINITY
      for (let b = 0; b < sites; b++) {
        this.engine.sites.setRtt(a, b, rttMs[a * sites + b]!)
        bestMs = Math.min(bestMs, rttMs[a * sites + b]!)
      }
      this.#bestMs[a] = bestMs
    }
  }

  #price(downtimeMs: number, bytes: number): number {
    const { costPerDowntimeMs, costPerGigabyte } = this.engine.settings.regret
    return costPerDowntimeMs * downtimeMs + costPerGigabyte * (bytes / 1e9)
  }

  /** The cost of a migration of this user's VM alone on the fastest link: a lower bound for every policy. */
  #soloPrice(user: number): number {
    const vm = this.vms[user]
    if (!vm) return 0
    const { memoryBytes, dirtyBytesPerSecond } = vm
    const bandwidthBytesPerSecond = this.#fastest
    const cost = migrationCost({ memoryBytes, dirtyBytesPerSecond, bandwidthBytesPerSecond, stagedBytes: 0 }, this.engine.settings.cost)
    return this.#price(cost.downtimeMs, cost.bytes)
  }
}
