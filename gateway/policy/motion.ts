// Where users are and how they move: a constant-velocity filter for each (alpha-beta, the steady state of a Kalman filter with that model).
// Enters: places in metres, with their times. Leaves: smoothed place and velocity. Pure; one typed array for each field.
// Always holds: a user is at most as fast as SPEED_MAX; after a gap the filter begins anew, for an old velocity says nothing.

const ALPHA = 0.5
const BETA = 0.12
const GAP_MS = 15_000
/** Above this a measured step is a mistake of the receiver. */
const SPEED_MAX = 70
/** m/s and m: below this a user stands still. */
const STANDING = 0.05

export class Motion {
  x = new Float64Array(64)
  y = new Float64Array(64)
  /** m/s. */
  vx = new Float64Array(64)
  vy = new Float64Array(64)
  atMs = new Float64Array(64).fill(Number.NEGATIVE_INFINITY)

  update(index: number, nowMs: number, x: number, y: number): void {
    if (index >= this.x.length) this.#grow(index + 1)
    const dtMs = nowMs - this.atMs[index]!
    if (!(dtMs < GAP_MS)) {
      this.#begin(index, nowMs, x, y)
      return
    }
    if (dtMs <= 0) return
    this.atMs[index] = nowMs
    const dt = dtMs / 1000
    const vx = this.vx[index]!
    const vy = this.vy[index]!
    const aheadX = this.x[index]! + vx * dt
    const aheadY = this.y[index]! + vy * dt
    const errorX = x - aheadX
    const errorY = y - aheadY
    if (errorX === 0 && errorY === 0 && vx === 0 && vy === 0) return
    if (errorX * errorX + errorY * errorY > (SPEED_MAX * dt + 50) ** 2) {
      this.#begin(index, nowMs, x, y)
      return
    }
    this.x[index] = aheadX + ALPHA * errorX
    this.y[index] = aheadY + ALPHA * errorY
    this.vx[index] = vx + (BETA / dt) * errorX
    this.vy[index] = vy + (BETA / dt) * errorY
    if (Math.abs(this.vx[index]!) + Math.abs(this.vy[index]!) < STANDING && Math.abs(errorX) + Math.abs(errorY) < STANDING)
      this.#begin(index, nowMs, x, y)
  }

  forget(index: number): void {
    if (index < this.atMs.length) this.atMs[index] = Number.NEGATIVE_INFINITY
  }

  /** Whether a place is known that is no older than the gap. */
  isKnown(index: number, nowMs: number): boolean {
    return nowMs - (this.atMs[index] ?? Number.NEGATIVE_INFINITY) < GAP_MS
  }

  speed(index: number): number {
    return Math.sqrt(this.vx[index]! ** 2 + this.vy[index]! ** 2)
  }

  #begin(index: number, nowMs: number, x: number, y: number): void {
    this.x[index] = x
    this.y[index] = y
    this.vx[index] = 0
    this.vy[index] = 0
    this.atMs[index] = nowMs
  }

  #grow(needed: number): void {
    const capacity = Math.max(needed, this.x.length * 2)
    const widen = (from: Float64Array<ArrayBuffer>, empty = 0) => {
      const to = new Float64Array(capacity).fill(empty)
      to.set(from)
      return to
    }
    this.x = widen(this.x)
    this.y = widen(this.y)
    this.vx = widen(this.vx)
    this.vy = widen(this.vy)
    this.atMs = widen(this.atMs, Number.NEGATIVE_INFINITY)
  }
}
