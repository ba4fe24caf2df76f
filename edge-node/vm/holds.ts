// Room that is kept for VMs that may come: a lease on memory, and on a place among this site's VMs. Enters: a VM's name, bytes, how long; the time.
// Leaves: what is held. Pure, in memory: a node that restarts holds nothing.
// Always holds: one hold for a VM; one that has lapsed counts no more, whether anybody says so or not; their number is bounded.
import { GodwitError } from '../../wire/errors.ts'

export const HOLDS_MAX = 32

export type Hold = { id: string; bytes: number; untilMs: number }

export class Holds {
  readonly #holds = new Map<string, Hold>()
  readonly #now: () => number

  constructor(now: () => number = Date.now) {
    this.#now = now
  }

  /** Takes the place of an earlier one of the same VM. LIMIT_EXCEEDED. */
  put(vm: string, hold: Hold): void {
    this.#tidy()
    if (!this.#holds.has(vm) && this.#holds.size >= HOLDS_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `room is held for ${HOLDS_MAX} VMs here already`)
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
