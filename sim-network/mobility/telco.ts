// The messages of a telco in this world (docs/reference/mqtt.md), with topics relative to the tenant's root. Enters: a
// world and its users. Leaves: messages; the caller sends them. Pure: times are virtual, counted from a moment that the
// caller passes. A user's latency is measured to its own site, to its VM's site, and to the nearest others: radio adds
// the same to all of them.
import type { World } from './world.ts'

type TelcoUser = { ueKey: string; vmId: string; vmSite: number }
export type TelcoMessage = { topic: string; retained: boolean; payload: Record<string, unknown> }

const SITES_MEASURED = 3

export class Telco {
  readonly #world: World
  readonly #userOf: (user: number) => TelcoUser | undefined
  readonly #startedAtMs: number
  readonly #seq: Float64Array
  readonly #cell: Int32Array
  readonly #x: Float64Array
  readonly #y: Float64Array
  #lastMs: number

  /** `startedAtMs`: Unix ms of the start of the world. */
  constructor(world: World, userOf: (user: number) => TelcoUser | undefined, startedAtMs: number) {
    this.#world = world
    this.#userOf = userOf
    this.#startedAtMs = startedAtMs
    this.#seq = new Float64Array(world.users.count)
    this.#cell = world.radio.serving.slice()
    this.#x = world.users.x.slice()
    this.#y = world.users.y.slice()
    this.#lastMs = world.nowMs
  }

  /**
   * All users' measurements since the last call: latency and location always, radio after a change of the serving cell
   * (A3) or in each call with `isPeriodic`.
   */
  users(isPeriodic = false): TelcoMessage[] {
    const messages: TelcoMessage[] = []
    const elapsedMs = this.#world.nowMs - this.#lastMs
    for (let user = 0; user < this.#world.users.count; user++) {
      const who = this.#userOf(user)
      if (who)
        messages.push(...this.#latency(user, who), this.#location(user, who.ueKey, elapsedMs), ...this.#radio(user, who.ueKey, isPeriodic))
      this.#cell[user] = this.#world.radio.serving[user]!
      this.#x[user] = this.#world.users.x[user]!
      this.#y[user] = this.#world.users.y[user]!
    }
    this.#lastMs = this.#world.nowMs
    return messages
  }

  /** The links between all sites, as a site's probe would measure them now. */
  links(): TelcoMessage[] {
    const { map, rttMs, nowMs } = this.#world
    const sampledAt = new Date(this.#startedAtMs + nowMs).toISOString()
    return map.sites.flatMap((from, a) =>
      map.sites.flatMap((to, b) => {
        if (a === b) return []
        const availableBps = Math.min(from.linkBytesPerSecond, to.linkBytesPerSecond) * 8
        const payload = { rttMs: rttMs[a * map.sites.length + b]!, jitterMs: 0, lossRatio: 0, availableBps, sampledAt }
        return [{ topic: `site/${from.name}/link/${to.name}`, retained: true, payload }]
      }),
    )
  }

  #latency(user: number, { ueKey, vmId, vmSite }: TelcoUser): TelcoMessage[] {
    const { map, rttMs, site } = this.#world
    const own = site[user]!
    const distance = (at: number) => rttMs[own * map.sites.length + at]!
    const others = map.sites.map((_, at) => at).sort((a, b) => distance(a) - distance(b))
    const measured = new Set([own, vmSite, ...others.slice(0, SITES_MEASURED)])
    return [...measured].map(at => {
      const payload = { seq: this.#next(user), vmId, targetSite: map.sites[at]!.name, rttMs: this.#world.userRttMs(user, at) }
      return { topic: `ue/${ueKey}/meas/latency`, retained: false, payload }
    })
  }

  #location(user: number, ueKey: string, elapsedMs: number): TelcoMessage {
    const { x, y } = this.#world.users
    const [east, north] = [x[user]! - this.#x[user]!, y[user]! - this.#y[user]!]
    const { lat, lon } = this.#world.map.projection.toGeo({ x: x[user]!, y: y[user]! })
    const speedMps = elapsedMs > 0 ? Math.hypot(east, north) / (elapsedMs / 1000) : 0
    const headingDeg = ((Math.atan2(east, north) * 180) / Math.PI + 360) % 360
    const payload = { seq: this.#next(user), lat, lon, accuracyM: 5, speedMps, ...(speedMps > 0 ? { headingDeg } : {}) }
    return { topic: `ue/${ueKey}/meas/location`, retained: false, payload }
  }

  #radio(user: number, ueKey: string, isPeriodic: boolean): TelcoMessage[] {
    const { radio, map } = this.#world
    const serving = radio.serving[user]!
    const isChanged = serving !== this.#cell[user]
    if (serving < 0 || !(isChanged || isPeriodic)) return []
    const cellOf = (cell: number, dbm: number) => ({ nrcgi: map.cells[cell]!.name, rsrpDbm: Math.max(-199, dbm) })
    const payload = {
      seq: this.#next(user),
      trigger: isChanged ? 'EVENT_A3' : 'PERIODIC',
      serving: cellOf(serving, this.#world.signal(user).dbm),
      neighbours: radio.neighbours(user).map(({ cell, dbm }) => cellOf(cell, dbm)),
      ...(isChanged ? { hoStatus: 'COMPLETED' } : {}),
    }
    return [{ topic: `ue/${ueKey}/meas/radio`, retained: false, payload }]
  }

  #next(user: number): number {
    return ++this.#seq[user]!
  }
}
