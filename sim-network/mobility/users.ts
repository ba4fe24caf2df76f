// Locations of all users. Enters: groups of users and virtual time. Leaves: x and y of each user in metres, step by
// step. Pure and seeded. Waypoints: along a path. Random waypoint: to a random place, then a pause, straight or by
// streets. Replay: recorded drives, one after the other. Always holds: a user's route depends only on the seed, its
// group and its number, never on the number of other users or on policies.
import { GodwitError } from '../../wire/errors.ts'
import { createRandom, type Random } from '../random.ts'
import type { Mover } from './legs.ts'
import type { SiteMap } from './map.ts'
import { RandomMover } from './random-waypoint.ts'
import { ReplayMover } from './replay.ts'
import type { Scenario, UserGroup } from './scenario.ts'
import type { DriveTrace } from './trace.ts'
import { WaypointMover } from './waypoints.ts'

type Group = { name: string; first: number; count: number; mover: Mover }

export class SimulatedUsers {
  readonly count: number
  readonly x: Float64Array
  readonly y: Float64Array
  /** 0: not present. */
  readonly isPresent: Uint8Array
  /** Number of the user's current identity: each replayed drive is a new one. */
  readonly session: Int32Array
  readonly groups: readonly Group[]

  constructor(scenario: Scenario, map: SiteMap, traces: readonly DriveTrace[]) {
    this.count = scenario.users.reduce((sum, { count }) => sum + count, 0)
    this.x = new Float64Array(this.count)
    this.y = new Float64Array(this.count)
    this.isPresent = new Uint8Array(this.count).fill(1)
    this.session = new Int32Array(this.count)
    let first = 0
    this.groups = scenario.users.map((group, at) => {
      const name = group.name ?? `group-${at + 1}`
      const random = createRandom(scenario.seed).fork(`users/${at}`)
      const placed = { name, first, count: group.count, mover: this.#moverOf(group, first, map, random, traces) }
      first += group.count
      return placed
    })
  }

  step(nowMs: number, elapsedMs: number): void {
    for (const { mover } of this.groups) mover.step(nowMs, elapsedMs)
  }

  group(name: string): Group {
    const found = this.groups.find(group => group.name === name)
    if (!found) throw new GodwitError('CONFIG_INVALID', `events: unknown group of users '${name}'`)
    return found
  }

  /** The recording that a user replays, and the position in it. */
  traceOf(user: number): { trace: DriveTrace; seconds: number } | undefined {
    const group = this.groups.find(({ first, count }) => user >= first && user < first + count)
    return group?.mover.traceOf?.(user)
  }

  #moverOf(group: UserGroup, first: number, map: SiteMap, random: Random, traces: readonly DriveTrace[]): Mover {
    switch (group.kind) {
      case 'waypoints':
        return new WaypointMover(this, group, first, map, random)
      case 'random-waypoint':
        return new RandomMover(this, group, first, map, random)
      case 'replay':
        return new ReplayMover(this, group.count, first, map, random, traces)
    }
  }
}
