// Where users are and how they move: a constant-velocity filter for each (alpha-beta, the steady state of a Kalman
// filter with that model).
// Enters: places in metres, with their times. Leaves: smoothed place and velocity. Pure; one typed array for each
// field.
// Always holds: a user is at most as fast as SPEED_MAX; after a gap the filter begins anew, for an old velocity says
// nothing.

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
    follow(this, index, nowMs, x, y)
  }

  /** Many at once: of each user `indexes[at]` the place, for callers with thousands of them. */
  updateAll(indexes: Int32Array, nowMs: number, xs: Float64Array, ys: Float64Array): void {
    let last = 0
    for (const index of indexes) last = Math.max(last, index)
    if (last >= this.x.length) this.#grow(last + 1)
    const { x, y, vx, vy, atMs } = this
    const columns = { x, y, vx, vy, atMs }
    for (let at = 0; at < indexes.length; at++) if (indexes[at]! >= 0) follow(columns, indexes[at]!, nowMs, xs[at]!, ys[at]!)
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

type Columns = Record<'x' | 'y' | 'vx' | 'vy' | 'atMs', Float64Array>

/** One place into one user's filter. */
function follow(columns: Columns, index: number, nowMs: number, x: number, y: number): void {
  const dtMs = nowMs - columns.atMs[index]!
  if (!(dtMs < GAP_MS)) {
    begin(columns, index, nowMs, x, y)
    return
  }
  if (dtMs <= 0) return
  columns.atMs[index] = nowMs
  const dt = dtMs / 1000
  const vx = columns.vx[index]!
  const vy = columns.vy[index]!
  const aheadX = columns.x[index]! + vx * dt
  const aheadY = columns.y[index]! + vy * dt
  const errorX = x - aheadX
  const errorY = y - aheadY
  if (errorX === 0 && errorY === 0 && vx === 0 && vy === 0) return
  if (errorX * errorX + errorY * errorY > (SPEED_MAX * dt + 50) ** 2) {
    begin(columns, index, nowMs, x, y)
    return
  }
  columns.x[index] = aheadX + ALPHA * errorX
  columns.y[index] = aheadY + ALPHA * errorY
  const speedX = vx + (BETA / dt) * errorX
  const speedY = vy + (BETA / dt) * errorY
  columns.vx[index] = speedX
  columns.vy[index] = speedY
  if (Math.abs(speedX) + Math.abs(speedY) < STANDING && Math.abs(errorX) + Math.abs(errorY) < STANDING) begin(columns, index, nowMs, x, y)
}

function begin(columns: Columns, index: number, nowMs: number, x: number, y: number): void {
  columns.x[index] = x
  columns.y[index] = y
  columns.vx[index] = 0
  columns.vy[index] = 0
  columns.atMs[index] = nowMs
}
