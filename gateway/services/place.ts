// Where a user's connection belongs now. Pure. Enters: what the sites say of their VMs. Leaves: a site, or why there is none.
// Always holds: of two sites that both speak of a VM the later owner (the higher epoch) counts; a site that is not connected is never named.
// It may be late by one message: the node itself has the last word (edge-node/services.ts).
import type { VmView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'

export type Place = { site: string } | { site: undefined; error: GodwitError }

export function placeOf({ vm, service }: { vm: string; service: string }, views: readonly VmView[]): Place {
  const known = views.filter(({ name, state }) => name === vm && state !== 'incoming')
  const none = (error: GodwitError): Place => ({ site: undefined, error })
  if (known.length === 0) return none(new GodwitError('VM_UNKNOWN', `no site has a VM '${vm}'`))
  const latest = known.reduce((best, view) => (view.epoch > best.epoch ? view : best))
  if (!latest.online) return none(new GodwitError('SITE_OFFLINE', `site ${latest.site}, where ${vm} was last, is not connected`))
  if (latest.state !== 'running' && latest.state !== 'migrating')
    return none(new GodwitError('VM_STATE', `${vm} is ${latest.state} at ${latest.site}`))
  if (!latest.services?.includes(service)) return none(new GodwitError('SERVICE_UNKNOWN', `${vm} has no service '${service}'`))
  return { site: latest.site }
}
