// A believed command carried out. Enters: a command. Leaves: the handoff that it began or ended, or a coded refusal.
// Always holds: between looking at a VM's epoch and starting its migration nothing is awaited, so that the fence holds.
import type { VmView } from '../../../wire/admin.ts'
import { GodwitError } from '../../../wire/errors.ts'
import type { ControlHost } from '../host.ts'
import { homesOf } from './facts.ts'
import type { Handoffs } from './handoffs.ts'
import type { Command } from './schemas.ts'

type Of<A extends Command['action']> = Extract<Command, { action: A }>

/** The id of the handoff, where there is one. EPOCH_STALE, NOT_AVAILABLE, and what the gateway refuses migrations with. */
export async function carryOut(command: Command, host: ControlHost, handoffs: Handoffs): Promise<string | undefined> {
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

/** The VM as the commander believes it to be. */
function fenced({ vmId, fromSite, expectedEpoch }: Command, host: ControlHost): VmView {
  const vm = homesOf(host.vms()).get(vmId)
  if (!vm) throw new GodwitError('VM_UNKNOWN', `no site has a VM '${vmId}'`)
  if (vm.epoch !== expectedEpoch)
    throw new GodwitError('EPOCH_STALE', `VM ${vmId} is at epoch ${vm.epoch} (site ${vm.site}), not ${expectedEpoch}`)
  if (fromSite !== undefined && fromSite !== vm.site)
    throw new GodwitError('EPOCH_STALE', `VM ${vmId} is at site ${vm.site}, not ${fromSite}`)
  return vm
}

/** The target has said that it could take the VM, and holds room for it. */
async function prestage(command: Of<'prestage'>, host: ControlHost): Promise<string> {
  const { vmId, toSite, constraints } = command
  fenced(command, host)
  const maxBytes = constraints?.maxBytes
  return (await host.prestage({ vm: vmId, to: toSite, ...(maxBytes === undefined ? {} : { maxBytes }) })).handoffId
}

async function start(command: Of<'start'>, host: ControlHost, handoffs: Handoffs): Promise<string> {
  const { vmId, toSite, method, constraints, traceparent } = command
  fenced(command, host)
  const handoffId = await host.start({
    vm: vmId,
    to: toSite,
    ...(method ? { method } : {}),
    ...(constraints?.maxDowntimeMs === undefined ? {} : { downtimeMs: constraints.maxDowntimeMs }),
  })
  handoffs.note(handoffId, { traceparent, bytesMax: constraints?.maxBytes })
  return handoffId
}

async function cancel({ vmId, handoffId, expectedEpoch, fromSite }: Of<'cancel'>, host: ControlHost): Promise<string> {
  const all = host.migrations().filter(({ vm }) => vm === vmId)
  const prepared = host.prestages().find(one => one.vm === vmId && (handoffId === undefined || one.handoffId === handoffId))
  if (prepared) {
    if (prepared.epoch !== expectedEpoch)
      throw new GodwitError('EPOCH_STALE', `handoff ${prepared.handoffId} is of epoch ${prepared.epoch}`)
    host.cancelPrestage(prepared.handoffId)
    return prepared.handoffId
  }
  const found = handoffId ? all.find(({ migrationId }) => migrationId === handoffId) : all.find(({ outcome }) => outcome === null)
  if (!found) throw new GodwitError('MIGRATION_UNKNOWN', `no handoff of VM ${vmId}${handoffId ? ` is ${handoffId}` : ' is under way'}`)
  if (found.plan.epoch !== expectedEpoch || (fromSite !== undefined && fromSite !== found.source))
    throw new GodwitError('EPOCH_STALE', `handoff ${found.migrationId} is of epoch ${found.plan.epoch}, from site ${found.source}`)
  await host.cancel(found.migrationId)
  return found.migrationId
}
