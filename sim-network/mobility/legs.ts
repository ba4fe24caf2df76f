// Users who move in straight lines from place to place, with pauses. Enters: destinations, steps of time. Leaves:
// places. Pure.
import type { DriveTrace } from './trace.ts'

export type Point = { x: number; y: number }
/** Locations of users, written by movers. */
export type Places = { x: Float64Array; y: Float64Array; session: Int32Array }
export type Mover = {
  /** Moves its users from `nowMs - elapsedMs` to `nowMs`. */
  step(nowMs: number, elapsedMs: number): void
  go?(user: number, to: Point, speedMps: number): void
  traceOf?(user: number): { trace: DriveTrace; seconds: number } | undefined
}

/** Straight legs with pauses; `next` returns a user's next leg. */
export class Legs {
  readonly #users: Places
  readonly #first: number
  readonly #toX: Float64Array
  readonly #toY: Float64Array
  readonly #speed: Float64Array
  readonly #pauseUntilMs: Float64Array
  readonly #next: (user: number, nowMs: number) => void

  constructor(users: Places, first: number, count: number, next: (user: number, nowMs: number) => void) {
    this.#users = users
    this.#first = first
    this.#toX = new Float64Array(count)
    this.#toY = new Float64Array(count)
    this.#speed = new Float64Array(count)
    this.#pauseUntilMs = new Float64Array(count)
    this.#next = next
  }

  aim(user: number, to: Point, speedMps: number, pauseUntilMs = 0): void {
    const at = user - this.#first
    this.#toX[at] = to.x
    this.#toY[at] = to.y
    this.#speed[at] = speedMps
    this.#pauseUntilMs[at] = pauseUntilMs
  }

  step(nowMs: number, elapsedMs: number): void {
    const { x, y } = this.#users
    const [toX, toY, speed, pauseUntilMs, first] = [this.#toX, this.#toY, this.#speed, this.#pauseUntilMs, this.#first]
    for (let at = 0; at < speed.length; at++) {
      if (nowMs < pauseUntilMs[at]!) continue
      const user = at + first
      const wayX = toX[at]! - x[user]!
      const wayY = toY[at]! - y[user]!
      const left = Math.sqrt(wayX * wayX + wayY * wayY)
      const way = (speed[at]! * elapsedMs) / 1000
      if (way < left) {
        x[user]! += (wayX * way) / left
        y[user]! += (wayY * way) / left
        continue
      }
      x[user] = toX[at]!
      y[user] = toY[at]!
      this.#next(user, nowMs)
    }
  }
}
