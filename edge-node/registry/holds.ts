// Room that is kept for VMs that may come: a lease on memory, and on a place among this site's VMs. Enters: a VM's
// name, bytes, how long; the time. Leaves: the holds. Pure, in memory: a node that restarts holds nothing.
// Always holds: one hold for a VM; a hold that has expired does not count any more; their number is bounded.
import { GodwitError } from '../../wire/errors.ts'

export const HOLDS_MAX = 32

/** `untilMs`: of performance.now(). */
export type Hold = { id: string; bytes: number; untilMs: number }

export class Holds {
  readonly #holds = new Map<string, Hold>()
  readonly #now: () => number

  /** `now`: ms of a clock that never jumps. A host's clock that is set back would keep room for hours. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now
  }

  /** Takes the place of an earlier one of the same VM. LIMIT_EXCEEDED. */
  put(vm: string, hold: Hold): void {
    this.#tidy()
    if (!this.#holds.has(vm) && this.#holds.size >= HOLDS_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `this site already reserves memory for ${HOLDS_MAX} VMs`)
    this.#holds.set(vm, hold)
  }

  /** By VM, once it is here; or by the hold's own id. Gives whether there was one. */
  release({ vm, id }: { vm?: string; id?: string }): boolean {
    this.#tidy()
    for (const [name, hold] of this.#holds) if (name === vm || hold.id === id) return this.#holds.delete(name)
    return false
  }

  /** All but that of this VM, which may use its own. */
  besides(vm: string | undefined): { bytes: number; count: number } {
    this.#tidy()
    const others = [...this.#holds].filter(([name]) => name !== vm)
    return { bytes: others.reduce((sum, [, { bytes }]) => sum + bytes, 0), count: others.length }
  }

  #tidy(): void {
    const now = this.#now()
    for (const [name, { untilMs }] of this.#holds) if (untilMs <= now) this.#holds.delete(name)
  }
}
