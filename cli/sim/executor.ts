// Executes migrations and pre-staging in virtual time, as a data plane would. Enters: decisions. Leaves: the site of
// each VM, its downtimes, the wire bytes, and the events for the policy. A transfer gets its share of bandwidth when it
// begins, drawn within 70 to 100 % of the expected rate, because predictions are never exact. Pure and seeded.

import type { PolicySettings } from '../../gateway/policy/settings.ts'
import type { Observation, VmDecision } from '../../gateway/policy/types.ts'
import { freshBytes, migrationCost } from '../../planning/cost.ts'
import type { SiteMap } from '../../sim-network/mobility/map.ts'
import type { Random } from '../../sim-network/random.ts'

export type SimVm = { name: string; user: number; site: number; memoryBytes: number; dirtyBytesPerSecond: number }
export type SimulatedMove = {
  vm: SimVm
  from: number
  to: number
  startMs: number
  stopMs: number
  endMs: number
  bytes: number
  downtimeMs: number
}
type Staging = { vm: SimVm; to: number; startMs: number; bytesPerMs: number; doneMs: number; keepMs: number; isReported: boolean }

type ExecutorEvents = {
  moved(move: SimulatedMove): void
  /** Bytes of a staged copy: sent, and of these never used. */
  staged(vm: SimVm, sentBytes: number, wastedBytes: number): void
  tell(observation: Observation): void
}

const BANDWIDTH_SHARE: [number, number] = [0.7, 1]

export class Executor {
  readonly moves = new Map<string, SimulatedMove>()
  readonly #stagings = new Map<string, Staging>()
  readonly #map: SiteMap
  readonly #settings: PolicySettings
  readonly #random: Random
  readonly #events: ExecutorEvents
  readonly #busy: Int32Array
  /** Highest number of parallel migrations of any site. */
  busyMax = 0

  constructor(map: SiteMap, settings: PolicySettings, random: Random, events: ExecutorEvents) {
    this.#map = map
    this.#settings = settings
    this.#random = random
    this.#events = events
    this.#busy = new Int32Array(map.sites.length)
  }

  move(decision: VmDecision & { action: 'move' }, vm: SimVm, to: number): void {
    const nowMs = decision.atMs
    const staging = this.#stagings.get(vm.name)
    let stagedBytes = 0
    if (staging) {
      const sent = this.#sent(staging, nowMs)
      const isOf = staging.to === to
      const ageMs = nowMs - Math.min(nowMs, staging.doneMs)
      if (isOf) stagedBytes = freshBytes(sent, ageMs, vm.dirtyBytesPerSecond)
      this.#drop(staging, nowMs, isOf ? 0 : sent)
    }
    const bandwidthBytesPerSecond = this.#bandwidth(vm.site, to)
    const { memoryBytes, dirtyBytesPerSecond } = vm
    const cost = migrationCost({ memoryBytes, dirtyBytesPerSecond, bandwidthBytesPerSecond, stagedBytes }, this.#settings.cost)
    this.#count(vm.site, 1)
    this.#count(to, 1)
    this.moves.set(vm.name, {
      vm,
      from: vm.site,
      to,
      startMs: nowMs,
      stopMs: nowMs + cost.totalMs - cost.downtimeMs,
      endMs: nowMs + cost.totalMs,
      bytes: cost.bytes,
      downtimeMs: cost.downtimeMs,
    })
  }

  stage(decision: VmDecision & { action: 'prepare' }, vm: SimVm, to: number): void {
    const before = this.#stagings.get(vm.name)
    if (before) this.#drop(before, decision.atMs, this.#sent(before, decision.atMs))
    const bytesPerMs = this.#bandwidth(vm.site, to) / 1000
    const doneMs = decision.atMs + vm.memoryBytes / bytesPerMs
    this.#stagings.set(vm.name, { vm, to, startMs: decision.atMs, bytesPerMs, doneMs, keepMs: decision.keepMs, isReported: false })
  }

  /** Ends all transfers that are due. */
  advance(nowMs: number): void {
    for (const move of this.moves.values()) if (move.endMs <= nowMs) this.#arrive(move)
    for (const staging of this.#stagings.values()) {
      if (staging.isReported) {
        if (nowMs - staging.doneMs > staging.keepMs) this.#drop(staging, nowMs, this.#sent(staging, nowMs))
        continue
      }
      const { vm, to } = staging
      staging.isReported = nowMs >= staging.doneMs
      const bytes = this.#sent(staging, nowMs)
      this.#events.tell({ kind: 'staged', vm: vm.name, site: this.#map.sites[to]!.name, bytes, isDone: staging.isReported })
    }
  }

  /** The VM ends (its user is gone): its transfers end too. */
  remove(vm: SimVm, nowMs: number): void {
    const move = this.moves.get(vm.name)
    if (move) {
      this.#count(move.from, -1)
      this.#count(move.to, -1)
      this.moves.delete(vm.name)
    }
    const staging = this.#stagings.get(vm.name)
    if (staging) this.#drop(staging, nowMs, this.#sent(staging, nowMs))
  }

  #arrive(move: SimulatedMove): void {
    this.moves.delete(move.vm.name)
    this.#count(move.from, -1)
    this.#count(move.to, -1)
    move.vm.site = move.to
    this.#events.moved(move)
    this.#events.tell({ kind: 'ended', vm: move.vm.name, outcome: 'completed' })
  }

  #drop(staging: Staging, nowMs: number, wastedBytes: number): void {
    const { vm, to } = staging
    this.#stagings.delete(vm.name)
    this.#events.staged(vm, this.#sent(staging, nowMs), wastedBytes)
    this.#events.tell({ kind: 'staged', vm: vm.name, site: this.#map.sites[to]!.name, bytes: 0, isDone: true })
  }

  #sent({ vm, startMs, bytesPerMs }: Staging, nowMs: number): number {
    return Math.min(vm.memoryBytes, (nowMs - startMs) * bytesPerMs)
  }

  #bandwidth(from: number, to: number): number {
    const link = Math.min(this.#map.sites[from]!.linkBytesPerSecond, this.#map.sites[to]!.linkBytesPerSecond)
    return (link * this.#random.between(...BANDWIDTH_SHARE)) / (1 + Math.max(this.#busy[from]!, this.#busy[to]!))
  }

  #count(site: number, change: 1 | -1): void {
    this.#busy[site]! += change
    this.busyMax = Math.max(this.busyMax, this.#busy[site]!)
  }
}
