// Sites that have said no to a VM: it is not sent there for a while, and the next best is looked at. Enters: refusals,
// the time. Leaves: the best site for a user that has not refused this VM. Pure. Always holds: what is remembered is
// bounded by VMs and sites, and lapses.
import type { SiteTable } from './sites.ts'

export class Unfit {
  /** By VM (index) and site: until when. */
  readonly #until = new Map<number, Map<number, number>>()

  get isEmpty(): boolean {
    return this.#until.size === 0
  }

  mark(index: number, site: number, untilMs: number): void {
    const refused = this.#until.get(index) ?? new Map<number, number>()
    refused.set(site, untilMs)
    this.#until.set(index, refused)
  }

  /** At one site (the VM is there now), or at all. */
  forget(index: number, site?: number): void {
    if (site === undefined) this.#until.delete(index)
    else this.#until.get(index)?.delete(site)
  }

  /** Sites that have refused this VM. */
  of(index: number, nowMs: number): number[] {
    const refused = this.#until.get(index)
    if (!refused) return []
    for (const [site, untilMs] of refused) if (untilMs <= nowMs) refused.delete(site)
    if (refused.size === 0) this.#until.delete(index)
    return [...refused.keys()]
  }

  /** The eligible site nearest to users of `userSite` that has not refused the VM, or -1. */
  best(sites: SiteTable, index: number, userSite: number, nowMs: number): number {
    const refused = this.isEmpty ? [] : this.of(index, nowMs)
    return refused.length === 0 ? sites.best(userSite) : sites.bestBut(userSite, refused)
  }
}
