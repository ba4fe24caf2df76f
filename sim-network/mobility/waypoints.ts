// Users who drive along a path: back and forth, in circles, or once. Pure and seeded.
import type { Random } from '../random.ts'
import { Legs, type Mover, type Places, type Point } from './legs.ts'
import type { SiteMap } from './map.ts'
import type { UserGroup } from './scenario.ts'

export class WaypointMover implements Mover {
  readonly #path: Point[]
  readonly #leg: Int32Array
  readonly #direction: Int8Array
  readonly #speed: Float64Array
  readonly #first: number
  readonly #end: 'loop' | 'reverse' | 'stay'
  readonly #legs: Legs

  constructor(users: Places, group: UserGroup & { kind: 'waypoints' }, first: number, map: SiteMap, random: Random) {
    this.#path = group.path.map(place => map.projection.toMap(place))
    this.#first = first
    this.#end = group.end
    this.#leg = new Int32Array(group.count)
    this.#direction = new Int8Array(group.count).fill(1)
    this.#speed = Float64Array.from({ length: group.count }, () => random.between(...group.speedMps))
    this.#legs = new Legs(users, first, group.count, user => this.#nextLeg(user))
    for (let at = 0; at < group.count; at++) {
      const leg = group.isSpread ? Math.floor(random.next() * (this.#path.length - 1)) : 0
      const part = group.isSpread ? random.next() : 0
      const [from, to] = [this.#path[leg]!, this.#path[leg + 1]!]
      users.x[first + at] = from.x + (to.x - from.x) * part
      users.y[first + at] = from.y + (to.y - from.y) * part
      this.#leg[at] = leg + 1
      this.#legs.aim(first + at, to, this.#speed[at]!)
    }
  }

  step(nowMs: number, elapsedMs: number): void {
    this.#legs.step(nowMs, elapsedMs)
  }

  go(user: number, to: Point, speedMps: number): void {
    this.#direction[user - this.#first] = 0
    this.#legs.aim(user, to, speedMps)
  }

  #nextLeg(user: number): void {
    const at = user - this.#first
    const last = this.#path.length - 1
    let next = this.#leg[at]! + this.#direction[at]!
    if (this.#direction[at] === 0) {
      this.#stay(user)
      return
    }
    if (next < 0 || next > last) {
      if (this.#end === 'stay') {
        this.#stay(user)
        return
      }
      if (this.#end === 'loop') next = 0
      else {
        this.#direction[at] = this.#direction[at] === 1 ? -1 : 1
        next = this.#leg[at]! + this.#direction[at]!
      }
    }
    this.#leg[at] = next
    this.#legs.aim(user, this.#path[next]!, this.#speed[at]!)
  }

  #stay(user: number): void {
    this.#legs.aim(user, { x: 0, y: 0 }, 0, Number.POSITIVE_INFINITY)
  }
}
