// Cheap checks before a migration is even written down. Pure: what is known comes in, a VM and its site go out, or a coded refusal.
// Always holds: nothing has been sent or stored when these refuse; what only the sites can know (memory, QEMU, CPU) is their preflight.
import type { MigrationRequest, VmView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'

export type Known = {
  vms: VmView[]
  knownSite(site: string): boolean
  onlineSite(site: string): boolean
  /** The unfinished migration of this VM, if there is one. */
  migrationOf(vm: string): string | undefined
  pinned(vm: string): boolean
}

/** The VM to move, with its site. VM_*, SITE_*, MIGRATION_BUSY, VM_PINNED. */
export function checkRequest({ vm, to, method = 'live' }: MigrationRequest, known: Known): VmView {
  const busy = known.migrationOf(vm)
  if (busy) throw new GodwitError('MIGRATION_BUSY', `VM ${vm} is in migration ${busy}`)
  if (!known.knownSite(to)) throw new GodwitError('SITE_UNKNOWN', `no site '${to}' has ever been connected here`)
  const found = findVm(vm, known.vms)
  const source = found.site
  if (source === to) throw new GodwitError('SITE_SAME', `VM ${vm} is at site ${to} already`)
  if (known.pinned(vm)) throw new GodwitError('VM_PINNED', `VM ${vm} is pinned to where it is (site ${source})`)
  if (!found.online) throw new GodwitError('SITE_OFFLINE', `site ${source}, where VM ${vm} was last seen, is not connected`)
  if (!known.onlineSite(to)) throw new GodwitError('SITE_OFFLINE', `the target site ${to} is not connected`)
  if (found.state === 'migrating' || found.state === 'incoming')
    throw new GodwitError('MIGRATION_BUSY', `VM ${vm} is ${found.state} at site ${source}`)
  if (found.state === 'failed' || (method === 'live' && found.state === 'stopped'))
    throw new GodwitError('VM_STATE', `VM ${vm} is ${found.state} at site ${source}`, {
      hint: found.state === 'stopped' ? 'start it first, or use --method cold' : "see the VM's qemu.log at that site",
    })
  if (known.vms.some(other => other.name === vm && other.site === to && other.online))
    throw new GodwitError('VM_EXISTS', `site ${to} has a VM ${vm} of its own`)
  return found
}

/** A name belongs to one VM; what lingers at a second site (stopped, failed) does not hide the one that lives. */
function findVm(name: string, vms: VmView[]): VmView {
  const all = vms.filter(vm => vm.name === name)
  const alive = all.filter(vm => vm.online && vm.state !== 'stopped' && vm.state !== 'failed')
  const candidates = alive.length > 0 ? alive : all.some(vm => vm.online) ? all.filter(vm => vm.online) : all
  const [first, second] = candidates
  if (!first) throw new GodwitError('VM_UNKNOWN', `no site has a VM '${name}'`)
  if (second)
    throw new GodwitError('VM_STATE', `sites ${first.site} and ${second.site} both have a VM ${name}`, { hint: 'delete the wrong one' })
  return first
}
