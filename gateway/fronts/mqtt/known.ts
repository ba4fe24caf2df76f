// Which sites and VMs this gateway has, for those who ask a thousand times a second. Enters: the gateway's lists.
// Leaves: yes or no.
// Always holds: what has come is known at once; what is gone, within a second. Lists are made anew only when a site has
// said something new of itself.
import type { FrontHost } from '../../handoff/host.ts'

export type Known = {
  isSite(name: string): boolean
  isVm(name: string): boolean
  /** The lists have changed. */
  changed(): void
}

const OLD_MS = 1_000

export function createKnown({ sites, vms, clock }: Pick<FrontHost, 'sites' | 'vms' | 'clock'>): Known {
  let names = { sites: new Set<string>(), vms: new Set<string>() }
  let madeAtMs = Number.NEGATIVE_INFINITY
  let isChanged = true

  function has(list: 'sites' | 'vms', name: string): boolean {
    if (isChanged && (!names[list].has(name) || Math.abs(clock.now() - madeAtMs) > OLD_MS)) {
      names = { sites: new Set(sites().map(({ site }) => site)), vms: new Set(vms().map(vm => vm.name)) }
      madeAtMs = clock.now()
      isChanged = false
    }
    return names[list].has(name)
  }

  return {
    isSite: name => has('sites', name),
    isVm: name => has('vms', name),
    changed() {
      isChanged = true
    },
  }
}
