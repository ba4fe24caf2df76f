// Users who go to a random place, pause, and continue: in a straight line, or along streets in a grid. Pure and seeded
// for each user.
import { GodwitError } from '../../wire/errors.ts'
import type { Random } from '../random.ts'
import { Legs, type Mover, type Places, type Point } from './legs.ts'
import type { SiteMap } from './map.ts'
import type { UserGroup } from './scenario.ts'

export class RandomMover implements Mover {
  readonly #random: Random[]
  readonly #area: { left: number; bottom: number; right: number; top: number }
  readonly #group: UserGroup & { kind: 'random-waypoint' }
  readonly #first: number
  /** The corner between a leg along the first axis and one along the second. */
  readonly #corner: (Point | undefined)[]
  readonly #speed: Float64Array
  readonly #legs: Legs

  constructor(users: Places, group: UserGroup & { kind: 'random-waypoint' }, first: number, map: SiteMap, random: Random) {
    this.#group = group
    this.#first = first
    this.#area = group.area ? areaOf(group.area, map) : map.box
    this.#random = Array.from({ length: group.count }, (_, at) => random.fork(String(at)))
    this.#corner = new Array(group.count)
    this.#speed = new Float64Array(group.count)
    this.#legs = new Legs(users, first, group.count, (user, nowMs) => this.#arrived(users, user, nowMs))
    for (let at = 0; at < group.count; at++) {
      const place = this.#place(this.#random[at]!)
      users.x[first + at] = place.x
      users.y[first + at] = place.y
      this.#aim(users, first + at, this.#random[at]!.next() * group.pauseS[1] * 1000)
    }
  }

  step(nowMs: number, elapsedMs: number): void {
    this.#legs.step(nowMs, elapsedMs)
  }

  go(user: number, to: Point, speedMps: number): void {
    this.#corner[user - this.#first] = undefined
    this.#legs.aim(user, to, speedMps)
  }

  #arrived(users: Places, user: number, nowMs: number): void {
    const at = user - this.#first
    const rest = this.#corner[at]
    this.#corner[at] = undefined
    if (rest) {
      this.#legs.aim(user, rest, this.#speed[at]!)
      return
    }
    this.#aim(users, user, nowMs + this.#random[at]!.between(...this.#group.pauseS) * 1000)
  }

  #aim(users: Places, user: number, pauseUntilMs: number): void {
    const at = user - this.#first
    const random = this.#random[at]!
    const to = this.#place(random)
    this.#speed[at] = random.between(...this.#group.speedMps)
    if (this.#group.streetMeters === undefined) {
      this.#legs.aim(user, to, this.#speed[at]!, pauseUntilMs)
      return
    }
    const corner = random.chance(0.5) ? { x: to.x, y: users.y[user]! } : { x: users.x[user]!, y: to.y }
    this.#corner[at] = to
    this.#legs.aim(user, corner, this.#speed[at]!, pauseUntilMs)
  }

  #place(random: Random): Point {
    const { left, bottom, right, top } = this.#area
    const place = { x: random.between(left, right), y: random.between(bottom, top) }
    const street = this.#group.streetMeters
    if (street === undefined) return place
    return random.chance(0.5)
      ? { x: Math.round(place.x / street) * street, y: place.y }
      : { x: place.x, y: Math.round(place.y / street) * street }
  }
}

function areaOf({ southWest, northEast }: NonNullable<(UserGroup & { kind: 'random-waypoint' })['area']>, { projection }: SiteMap) {
  const [low, high] = [projection.toMap(southWest), projection.toMap(northEast)]
  if (!(low.x < high.x && low.y < high.y)) throw new GodwitError('CONFIG_INVALID', 'area: southWest must lie south-west of northEast')
  return { left: low.x, bottom: low.y, right: high.x, top: high.y }
}
