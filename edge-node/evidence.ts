// What this site tells a gateway that has lost its records about VMs that changed hands: where those went that it gave
// away, and by whose word it took over those that it has. Enters: the journal's last records at the start, then each
// hand-over. Leaves: lists for site.state.
// Always holds: bounded by VMs, the newest are kept; a VM that is here again was not moved, a VM that is gone is not
// taken over.
import type { MovedVm } from '../wire/control.ts'
import type { OwnershipRecord } from './migration/journal.ts'

const KEPT_MAX = 64

export type Evidence = {
  moved(isHere: (vm: string) => boolean): MovedVm[]
  fencings(isHere: (vm: string) => boolean): string[]
  noteMoved(moved: MovedVm): void
  noteFencing(vm: string, statement: string): void
}

/** `records`: the last of each migration, oldest first. */
export function createEvidence(records: readonly OwnershipRecord[]): Evidence {
  const moved = new Map<string, MovedVm>()
  const fencings = new Map<string, string>()
  const keep = <T>(kept: Map<string, T>, vm: string, value: T) => {
    kept.delete(vm)
    kept.set(vm, value)
    if (kept.size > KEPT_MAX) kept.delete(kept.keys().next().value!)
  }
  for (const { vm, side, state, epoch, plan, fencing } of records) {
    if (side === 'source' && state === 'RETIRED') keep(moved, vm, { vm, target: plan.target, epoch })
    if (fencing !== undefined) keep(fencings, vm, fencing)
  }
  return {
    moved: isHere => [...moved.values()].filter(({ vm }) => !isHere(vm)),
    fencings: isHere => [...fencings].flatMap(([vm, statement]) => (isHere(vm) ? [statement] : [])),
    noteMoved: one => keep(moved, one.vm, one),
    noteFencing: (vm, statement) => keep(fencings, vm, statement),
  }
}
