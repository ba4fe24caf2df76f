// A believed command carried out. Enters: a command. Leaves: the handoff that it began or ended, or a coded refusal.
// Always holds: between looking at a VM's epoch and starting its migration nothing is awaited, so that the fence holds.

import type { Command } from '../../../mqtt/schemas.ts'
import type { VmView } from '../../../wire/admin.ts'
import type { SignedCommand } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { vmAt } from '../../handoff/home.ts'
import type { FrontHost } from '../../handoff/host.ts'
import { PHASES } from '../../handoff/phases.ts'
import type { Handoffs } from './handoffs.ts'

type Of<A extends Command['action']> = Extract<Command, { action: A }>

/** The id of the handoff, if there is one. EPOCH_STALE, NOT_AVAILABLE, and the codes that refuse a migration. */
export async function carryOut(command: Command, host: FrontHost, handoffs: Handoffs): Promise<string | undefined> {
  switch (command.action) {
    case 'start':
      return start(command, host, handoffs)
    case 'cancel':
      return cancel(command, host)
    case 'pin':
      fenced(command, host)
      await host.pins.set(command.vmId, command.pinned, `${command.sig.key}: ${command.reason}`)
      return undefined
    case 'prestage':
      return prestage(command, host)
  }
}

/** As it came, for a source that checks the signature itself. */
function signedOf({ action: _, ...signed }: Command): SignedCommand {
  return signed as SignedCommand
}

/** The VM as the commander believes it to be. */
function fenced({ vmId, fromSite, expectedEpoch }: Command, host: FrontHost): VmView {
  const vm = vmAt(host.find(vmId))
  if (vm.epoch !== expectedEpoch)
    throw new GodwitError('EPOCH_STALE', `VM ${vmId} is at epoch ${vm.epoch} (site ${vm.site}), not at epoch ${expectedEpoch}`)
  if (fromSite !== undefined && fromSite !== vm.site)
    throw new GodwitError('EPOCH_STALE', `VM ${vmId} is at site ${vm.site}, not at ${fromSite}`)
  return vm
}

/** The target has said that it could take the VM, and holds room for it. */
async function prestage(command: Of<'prestage'>, host: FrontHost): Promise<string> {
  const { vmId, toSite, constraints } = command
  fenced(command, host)
  const maxBytes = constraints?.maxBytes
  return (await host.prestage({ vm: vmId, to: toSite, command: signedOf(command), ...(maxBytes === undefined ? {} : { maxBytes }) }))
    .handoffId
}

async function start(command: Of<'start'>, host: FrontHost, handoffs: Handoffs): Promise<string> {
  const { vmId, toSite, method, start: isToStart, constraints, traceparent } = command
  fenced(command, host)
  const handoffId = await host.start({
    vm: vmId,
    to: toSite,
    command: signedOf(command),
    ...(method ? { method } : {}),
    ...(isToStart ? { start: true } : {}),
    ...(constraints?.maxDowntimeMs === undefined ? {} : { downtimeMs: constraints.maxDowntimeMs }),
    maxBytes: constraints?.maxBytes,
  })
  handoffs.note(handoffId, traceparent)
  return handoffId
}

async function cancel({ vmId, handoffId, expectedEpoch, fromSite }: Of<'cancel'>, host: FrontHost): Promise<string> {
  const all = host.handoffs().filter(({ vm }) => vm === vmId)
  const found = handoffId ? all.find(({ id }) => id === handoffId) : all.find(({ phase }) => !PHASES[phase].over)
  if (!found)
    throw new GodwitError('MIGRATION_UNKNOWN', handoffId ? `VM ${vmId} has no handoff ${handoffId}` : `VM ${vmId} has no running handoff`)
  if (found.epoch !== expectedEpoch || (fromSite !== undefined && fromSite !== found.source))
    throw new GodwitError('EPOCH_STALE', `handoff ${found.id} is at epoch ${found.epoch}, from site ${found.source}`)
  await host.cancel(found.id)
  return found.id
}
