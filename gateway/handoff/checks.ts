// Cheap checks before a migration is even written down. Pure: what is known comes in, a VM and its site go out, or a
// coded refusal.
// Always holds: nothing has been sent or stored when these refuse; what only the sites can know (memory, QEMU, CPU) is
// their preflight.
import type { MigrationRequest, VmView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import { type Home, vmAt } from './home.ts'

type Known = {
  /** Where a VM lives (homes.ts). */
  find(vm: string): Home
  /** Every site's view of its VMs. */
  vms: VmView[]
  knownSite(site: string): boolean
  onlineSite(site: string): boolean
  /** The unfinished migration of this VM, if there is one. */
  migrationOf(vm: string): string | undefined
  pinned(vm: string): boolean
}

/** The VM to move, with its site. VM_*, SITE_*, MIGRATION_BUSY, VM_PINNED. */
export function checkRequest({ vm, to, method }: Pick<MigrationRequest, 'vm' | 'to' | 'method'>, known: Known): VmView {
  const busy = known.migrationOf(vm)
  if (busy) throw new GodwitError('MIGRATION_BUSY', `VM ${vm} is in migration ${busy}`)
  if (!known.knownSite(to)) throw new GodwitError('SITE_UNKNOWN', `site '${to}' has never connected to this gateway`)
  const found = vmAt(known.find(vm))
  const source = found.site
  if (source === to) throw new GodwitError('SITE_SAME', `VM ${vm} is already at site ${to}`)
  if (known.pinned(vm)) throw new GodwitError('VM_PINNED', `VM ${vm} is pinned to site ${source}`)
  if (!found.online) throw new GodwitError('SITE_OFFLINE', `site ${source} of VM ${vm} is not connected`)
  if (!known.onlineSite(to)) throw new GodwitError('SITE_OFFLINE', `the target site ${to} is not connected`)
  if (found.state === 'migrating') throw new GodwitError('MIGRATION_BUSY', `VM ${vm} is migrating at site ${source}`)
  if (found.state === 'failed' || (found.state === 'stopped' && method !== 'cold'))
    throw new GodwitError('VM_STATE', `VM ${vm} is ${found.state} at site ${source}`, { hint: hintFor(found) })
  if (known.vms.some(other => other.name === vm && other.site === to && other.online))
    throw new GodwitError('VM_EXISTS', `site ${to} has another VM with the name ${vm}`)
  return found
}

const hintFor = ({ name, site, state }: VmView): string =>
  state === 'stopped'
    ? `move it as it is with --method cold, or start it first, at site ${site}: godwit vm start ${name}`
    : `find the reason (godwit vm show ${name}), then start it, at site ${site}: godwit vm start ${name}`
