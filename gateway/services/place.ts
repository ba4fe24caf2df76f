// The site for a user's connection. Pure. Enters: where the VM lives (handoff/home.ts). Leaves: a site, or a coded
// reason why there is none. Always holds: the result is never a disconnected site. The answer may be late by one
// message: the node itself decides (edge-node/services.ts).
import { GodwitError } from '../../wire/errors.ts'
import type { Home } from '../handoff/home.ts'

type Place = { site: string } | { site: undefined; error: GodwitError }

export function siteForUser(service: string, { vm, why }: Home): Place {
  const none = (error: GodwitError): Place => ({ site: undefined, error })
  if (!vm) return none(why)
  const { name, site, state } = vm
  if (!vm.online) return none(new GodwitError('SITE_OFFLINE', `site ${site} of VM ${name} is not connected`))
  if (state !== 'running' && state !== 'migrating') return none(new GodwitError('VM_STATE', `VM ${name} is ${state} at site ${site}`))
  if (!vm.services?.includes(service)) return none(new GodwitError('SERVICE_UNKNOWN', `VM ${name} has no service '${service}'`))
  return { site }
}
