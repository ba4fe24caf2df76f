// Sites and VMs as the broker shall show them: births, deaths, placements, telemetry, links. No network here: `say`
// takes what is to be said.
// Enters: which site or VM has changed; the time. Leaves: payloads.
// Always holds: nodes do not speak MQTT: a site is online when its link to this gateway is; a placement is cleared only
// when the VM's last site is there and does not list it, and nobody else does.

import type { Latency } from '../../../mqtt/schemas.ts'
import type { Parameters, TopicKind } from '../../../mqtt/topics.ts'
import type { SiteView, VmView } from '../../../wire/admin.ts'
import type { FrontHost } from '../../handoff/host.ts'
import { estimatePaths, PATHS_MAX } from '../../handoff/paths.ts'
import { birthOf, rfc3339, type SitePlace } from './facts.ts'

export type Say = (kind: TopicKind, parameters: Parameters, payload: object | null, extra?: { traceparent?: string | undefined }) => void

const ANNOUNCED_USERS_MAX = 8
const USER_SILENCE_MS = 10 * 60_000
/** What others have measured of a way stands for this long. */
const MEASURED_MS = 60_000

type Placed = { site: string; epoch: number; sinceMs: number }

export class Announcer {
  readonly #host: FrontHost
  readonly #say: Say
  readonly #places: Record<string, SitePlace>
  /** bdSeq of the birth that was said last; a site that is not here has none. */
  readonly #births = new Map<string, number>()
  readonly #placed = new Map<string, Placed>()
  /** By VM: its users, by when they were last heard of. */
  readonly #users = new Map<string, Map<string, number>>()
  readonly #rtts = new Map<string, Map<string, number>>()
  /** Ways that others measure: when they last did. */
  readonly #measured = new Map<string, number>()
  readonly #traffic = new Map<string, { atMs: number; ingressBytes: number; egressBytes: number }>()
  #telemetrySeq = 0

  constructor(host: FrontHost, say: Say, places: Record<string, SitePlace>) {
    this.#host = host
    this.#say = say
    this.#places = places
  }

  /** Says what has become of these sites, and of the VMs that were or are there. */
  refresh(sites: Iterable<string>, vmNames: Iterable<string> = []): void {
    const changed = new Set(sites)
    const vms = this.#host.vms()
    const held = new Map<string, number>()
    for (const { site, state, memoryBytes } of vms) if (state !== 'stopped') held.set(site, (held.get(site) ?? 0) + memoryBytes)
    const online = new Set<string>()
    for (const view of this.#host.sites()) {
      if (view.online) online.add(view.site)
      if (changed.has(view.site)) this.#siteState(view, held.get(view.site) ?? 0)
    }
    const known = new Set(this.#host.sites().map(({ site }) => site))
    for (const site of changed) if (!known.has(site)) this.#siteForgotten(site)
    const homes = new Map(vms.map(vm => [vm.name, vm]))
    const named = new Set(vmNames)
    for (const [name, vm] of homes) {
      const before = this.#placed.get(name)
      if (changed.has(vm.site) || named.has(name) || (before && changed.has(before.site))) this.#place(name, vm, before)
    }
    for (const [name, { site }] of this.#placed) {
      if (!changed.has(site) || homes.has(name) || (known.has(site) && !online.has(site))) continue
      this.#placed.delete(name)
      this.#users.delete(name)
      this.#rtts.delete(name)
      this.#say('placement', { vmId: name }, null)
    }
  }

  refreshAll(): void {
    this.refresh(this.#host.sites().map(({ site }) => site))
  }

  telemetry(): void {
    const nowMs = this.#host.clock.now()
    const active = this.#host.migrations().filter(({ outcome }) => outcome === null)
    this.#telemetrySeq += 1
    for (const { site, online, host } of this.#host.sites()) {
      if (!online || !host) continue
      this.#say(
        'siteTelemetry',
        { siteId: site },
        {
          seq: this.#telemetrySeq,
          at: rfc3339(nowMs),
          free: { memBytes: host.memoryFreeBytes, diskBytes: host.diskFreeBytes },
          activeMigrations: active.filter(({ source, target }) => source === site || target === site).length,
          ...this.#rates(site, nowMs),
        },
      )
    }
  }

  /**
   * The path from each site to this gateway, and through it to each other one, unless somebody measures that directly.
   */
  links(): void {
    const nowMs = this.#host.clock.now()
    const sampledAt = rfc3339(nowMs)
    const { gatewayId } = this.#host
    const sites = this.#host.sites()
    for (const { site, online, rttMs } of sites)
      if (online && rttMs !== null) this.#say('siteLink', { siteId: site, peerId: gatewayId }, { rttMs, sampledAt })
    for (const { from, to, rttMs, availableBps } of estimatePaths(sites, this.#host.migrations(), nowMs)) {
      if (nowMs - (this.#measured.get(`${from} ${to}`) ?? Number.NEGATIVE_INFINITY) < MEASURED_MS) continue
      this.#say('siteLink', { siteId: from, peerId: to }, { rttMs, availableBps, via: gatewayId, sampledAt })
    }
  }

  /** Somebody else has measured this way: theirs stands. */
  linkHeard(site: string, peer: string, nowMs: number): void {
    const pair = `${site} ${peer}`
    this.#measured.delete(pair)
    this.#measured.set(pair, nowMs)
    if (this.#measured.size > PATHS_MAX) this.#measured.delete(this.#measured.keys().next().value!)
  }

  /** A user of a VM was measured. Gives whether the VM has a user that it had not. */
  heard(ueKey: string, { vmId, targetSite, rttMs }: Latency, nowMs: number): boolean {
    if (!this.#placed.has(vmId)) return false
    const rtts = this.#rtts.get(vmId) ?? new Map<string, number>()
    this.#rtts.set(vmId, rtts)
    rtts.delete(targetSite)
    rtts.set(targetSite, rttMs)
    if (rtts.size > ANNOUNCED_USERS_MAX) rtts.delete(rtts.keys().next().value!)
    return this.#heardOf(vmId, ueKey, nowMs)
  }

  /** Last round trip that a user of this VM has measured to a site, ms. */
  rtt(vm: string, site: string): number | null {
    return this.#rtts.get(vm)?.get(site) ?? null
  }

  #heardOf(vm: string, ueKey: string, nowMs: number): boolean {
    const users = this.#users.get(vm) ?? new Map<string, number>()
    this.#users.set(vm, users)
    const isNew = !users.has(ueKey)
    users.delete(ueKey)
    users.set(ueKey, nowMs)
    const [longestSilent, heardAtMs] = users.entries().next().value!
    if (users.size > ANNOUNCED_USERS_MAX || nowMs - heardAtMs > USER_SILENCE_MS) users.delete(longestSilent)
    return isNew
  }

  #siteState(view: SiteView, heldBytes: number): void {
    const { site } = view
    const facts = this.#host.linkFacts(site)
    if (view.online && facts) {
      const birth = birthOf(view, facts, this.#places[site], { gatewayId: this.#host.gatewayId, heldBytes })
      this.#births.set(site, birth.bdSeq)
      this.#say('siteState', { siteId: site }, birth)
      return
    }
    const nowMs = this.#host.clock.now()
    // Of a birth that an earlier process of ours said we do not know the number: any death from now on counts for it.
    const bdSeq = this.#births.get(site) ?? Math.floor(nowMs)
    this.#births.set(site, bdSeq)
    this.#say('siteState', { siteId: site }, { online: false, timestamp: rfc3339(view.since), bdSeq })
  }

  #siteForgotten(site: string): void {
    this.#births.delete(site)
    this.#say('siteState', { siteId: site }, null)
  }

  #place(name: string, vm: VmView, before: Placed | undefined): void {
    const isSame = before?.site === vm.site && before.epoch === vm.epoch
    const placed = isSame ? before : { site: vm.site, epoch: vm.epoch, sinceMs: this.#host.clock.now() }
    this.#placed.set(name, placed)
    const policy = { pinned: this.#host.pins.has(name) }
    const ueKeys = [...(this.#users.get(name)?.keys() ?? [])]
    this.#say('placement', { vmId: name }, { siteId: vm.site, epoch: vm.epoch, since: rfc3339(placed.sinceMs), ueKeys, policy })
  }

  #rates(site: string, atMs: number): { ingressBps: number; egressBps: number } {
    const now = { atMs, ...this.#host.traffic(site) }
    const before = this.#traffic.get(site) ?? { ...now, atMs: this.#host.startedAt, ingressBytes: 0, egressBytes: 0 }
    this.#traffic.set(site, now)
    const bps = (bytes: number) => (atMs > before.atMs ? Math.round((bytes * 8000) / (atMs - before.atMs)) : 0)
    return { ingressBps: bps(now.ingressBytes - before.ingressBytes), egressBps: bps(now.egressBytes - before.egressBytes) }
  }
}
