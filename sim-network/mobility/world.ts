// The world of a scenario in virtual time: users move, cells serve them, the path to their site has a latency, events
// happen. Enters: a scenario, traces, and steps of time. Leaves: for each user its location, serving cell, site and
// access latency; the RTT between sites. Pure and seeded: policies have no influence, so all policies run in the same
// world.
import { GodwitError } from '../../wire/errors.ts'
import { createRandom, randomAt } from '../random.ts'
import { createMap, nearest, type SiteMap } from './map.ts'
import { RadioModel } from './radio.ts'
import { Recorded } from './recorded.ts'
import type { Scenario, ScenarioEvent } from './scenario.ts'
import type { DriveTrace } from './trace.ts'
import { SimulatedUsers } from './users.ts'

/** Interruption of a user's packets by a change of cell. */
const HANDOVER_MS = 30
/** The radio is computed again after this distance: shadowing changes over tens of metres. */
const MOVED_METERS = 10
/** Below this level radio retransmissions begin. */
const WEAK_DBM = -108
const WEAK_MS_PER_DB = 0.4

type SiteChange = { site: number; isEligible: boolean }

export class World {
  readonly map: SiteMap
  readonly users: SimulatedUsers
  readonly radio: RadioModel
  /** The site of the user's serving cell. */
  readonly site: Int32Array
  /** Current round trip from the user to its site. */
  readonly accessMs: Float64Array
  /** RTT between sites, including events. */
  readonly rttMs: Float64Array
  readonly stepMs: number
  nowMs = 0
  siteChanges = 0
  cellChanges = 0
  readonly #scenario: Scenario
  readonly #events: ScenarioEvent[]
  readonly #usersAt: Int32Array
  readonly #addedMs: Float64Array
  readonly #loadMs: Float64Array
  readonly #recorded: (Recorded | undefined)[]
  readonly #seenX: Float64Array
  readonly #seenY: Float64Array
  readonly #spikeSeed: number

  constructor(scenario: Scenario, traces: readonly DriveTrace[] = [], played: readonly DriveTrace[] = traces) {
    this.#scenario = scenario
    this.map = createMap(scenario, traces)
    this.users = new SimulatedUsers(scenario, this.map, played)
    this.stepMs = scenario.stepMs
    this.radio = new RadioModel(this.map, scenario.radio, scenario.seed, this.users.count)
    const sites = this.map.sites.length
    this.rttMs = this.map.rttMs.slice()
    this.site = new Int32Array(this.users.count).fill(-1)
    this.accessMs = new Float64Array(this.users.count)
    this.#events = [...scenario.events].sort((a, b) => a.atS - b.atS)
    this.#usersAt = new Int32Array(sites)
    this.#addedMs = new Float64Array(sites)
    this.#loadMs = new Float64Array(sites)
    this.#seenX = new Float64Array(this.users.count).fill(Number.NaN)
    this.#seenY = new Float64Array(this.users.count).fill(Number.NaN)
    this.#spikeSeed = createRandom(scenario.seed).fork('spikes').uint32()
    const cells = new Map(this.map.cells.map((cell, at) => [cell.name, at]))
    this.#recorded = Array.from({ length: this.users.count }, (_, user) => {
      const source = this.users.traceOf(user)
      return source && this.#scenario.alongTraces ? new Recorded(this.users, user, cells) : undefined
    })
    this.#look(true)
  }

  /** The site index of a name; CONFIG_INVALID if there is none. */
  siteNamed(name: string): number {
    const site = this.map.sites.findIndex(other => other.name === name)
    if (site < 0) throw new GodwitError('CONFIG_INVALID', `events: unknown site '${name}'`)
    return site
  }

  /** Advances one step. Returns sites that opened or closed for VMs, and whether RTTs between sites changed. */
  step(): { sites: SiteChange[]; isRttChanged: boolean } {
    this.nowMs += this.stepMs
    const changes: SiteChange[] = []
    let isRttChanged = false
    while (this.#events[0] && this.#events[0].atS * 1000 <= this.nowMs) {
      const event = this.#events.shift()!
      if (event.kind === 'latency') isRttChanged = true
      const change = this.#happen(event)
      if (change) changes.push(change)
    }
    this.users.step(this.nowMs, this.stepMs)
    this.#look(false)
    return { sites: changes, isRttChanged }
  }

  /** The RTT that a user with its VM at `vmSite` measures now. */
  userRttMs(user: number, vmSite: number): number {
    return this.accessMs[user]! + this.rttMs[this.site[user]! * this.map.sites.length + vmSite]!
  }

  #happen(event: ScenarioEvent): SiteChange | undefined {
    switch (event.kind) {
      case 'site-down':
      case 'site-up':
        return { site: this.siteNamed(event.site), isEligible: event.kind === 'site-up' }
      case 'load':
        this.#loadMs[this.siteNamed(event.site)] = event.addMs
        return undefined
      case 'latency':
        this.#addedMs[this.siteNamed(event.site)] = event.addMs
        this.#updateRtt()
        return undefined
      case 'go': {
        const { first, count, mover } = this.users.group(event.group)
        const random = createRandom(this.#scenario.seed).fork(`go/${event.atS}/${event.group}`)
        const { x, y } = this.map.projection.toMap(event.to)
        const away = event.spreadMeters
        for (let user = first; user < first + count; user++) {
          const to = { x: x + random.between(-away, away), y: y + random.between(-away, away) }
          if (random.chance(event.share)) mover.go?.(user, to, event.speedMps)
        }
        return undefined
      }
    }
  }

  #updateRtt(): void {
    const sites = this.map.sites.length
    for (let a = 0; a < sites; a++) {
      for (let b = 0; b < sites; b++) {
        if (a !== b) this.rttMs[a * sites + b] = this.map.rttMs[a * sites + b]! + this.#addedMs[a]! + this.#addedMs[b]!
      }
    }
  }

  #look(isFirst: boolean): void {
    const { accessMs, loadMsPerUser, loadFreeUsers, spikeShare, spikeMs } = this.#scenario.network
    const { count } = this.users
    const tick = Math.round(this.nowMs / this.stepMs)
    for (let user = 0; user < count; user++) {
      const recorded = this.#recorded[user]
      const isHandover = recorded ? this.#lookAtRecord(user, recorded) : this.#lookAround(user, isFirst)
      const site = this.site[user]!
      let ms = accessMs + this.#loadMs[site]!
      if (loadMsPerUser > 0) ms += Math.max(0, this.#usersAt[site]! - loadFreeUsers) * loadMsPerUser
      if (isHandover && !isFirst) {
        ms += HANDOVER_MS
        this.cellChanges++
      }
      if (recorded) ms += recorded.extraMs
      else {
        const draw = randomAt(this.#spikeSeed ^ Math.imul(user, 0x9e3779b1), tick)
        if (draw < spikeShare) ms += -spikeMs * Math.log(Math.max(1e-9, draw / spikeShare))
      }
      this.accessMs[user] = ms
    }
  }

  /** True at a change of cell. */
  #lookAtRecord(user: number, recorded: Recorded): boolean {
    const isHandover = recorded.step()
    const site =
      recorded.cell < 0 ? nearest(this.map.sites, { x: this.users.x[user]!, y: this.users.y[user]! }) : this.map.cells[recorded.cell]!.site
    this.#move(user, site)
    return isHandover
  }

  /** True at a change of cell. */
  #lookAround(user: number, isFirst: boolean): boolean {
    const x = this.users.x[user]!
    const y = this.users.y[user]!
    if (!isFirst && Math.abs(x - this.#seenX[user]!) + Math.abs(y - this.#seenY[user]!) <= MOVED_METERS) return false
    this.#seenX[user] = x
    this.#seenY[user] = y
    if (!this.radio.update(user, this.nowMs, x, y)) return false
    this.#move(user, this.map.cells[this.radio.serving[user]!]!.site)
    return !isFirst
  }

  #move(user: number, site: number): void {
    const before = this.site[user]!
    if (before === site) return
    if (before >= 0) {
      this.#usersAt[before]!--
      this.siteChanges++
    }
    this.#usersAt[site]!++
    this.site[user] = site
  }

  /** Delay caused by a weak signal of the serving cell (dBm). */
  signal(user: number): { dbm: number; extraMs: number } {
    const dbm = this.radio.rsrp(this.radio.serving[user]!, this.users.x[user]!, this.users.y[user]!)
    return { dbm, extraMs: Math.max(0, WEAK_DBM - dbm) * WEAK_MS_PER_DB }
  }
}
