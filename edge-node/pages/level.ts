// Which zstd level fits: as much compression as the link gives time for, as little as keeps it full. Pure.
// Enters: at each compressed batch, who waits for whom. Leaves: a step on the ladder.
// Always holds: one step at a time, and only after STEADY observations in its favour more than against it; so a burst of either kind changes nothing.

/** From a link faster than any compression to one so slow that time is plenty. Measured (bench/pipeline.ts): -1 is slower than 1 and no smaller on
 * batches of 256 KiB; above 3 each per cent of size costs more of the guest's host than it is worth. */
export const LEVEL_LADDER = ['off', -5, 1, 3] as const
export type Level = number | 'off'

const STEADY = 16

export class LevelControl {
  #step: number = LEVEL_LADDER.indexOf(1)
  #lean = 0

  get level(): Level {
    return LEVEL_LADDER[this.#step]!
  }

  /** `link`: batches wait for room on the link. `workers`: the link is idle and batches wait for a worker. `none`: neither, QEMU is the slow one. */
  observe(limit: 'link' | 'workers' | 'none'): void {
    if (limit === 'none') return
    this.#lean += limit === 'link' ? 1 : -1
    if (Math.abs(this.#lean) < STEADY) return
    this.#step = Math.min(Math.max(this.#step + Math.sign(this.#lean), 0), LEVEL_LADDER.length - 1)
    this.#lean = 0
  }
}
